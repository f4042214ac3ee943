"""Small networks for small images: a CNN and an MLP."""

from itertools import pairwise

from torch import Tensor, nn

from syncnorm.models.factory import NormFactory, plain_batch_norm
from syncnorm.norms import MixStyle


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with a norm after each, two poolings, and a linear classifier.

    Input (N, C, H, W) with H and W at least 4, output (N, classes) logits. There are `width` channels at first,
    doubled at each pooling. Convolutions have a bias, so that the network also works with the norm "none". With
    `mix_style`, there is a MixStyle with that probability before each pooling.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        norm: NormFactory | None = None,
        *,
        width: int = 16,
        mix_style: float = 0.0,
    ) -> None:
        super().__init__()
        norm = norm or plain_batch_norm()
        self.features = nn.Sequential(
            *_conv(in_channels, width, norm),
            *_mixing(width, mix_style),
            nn.MaxPool2d(2),
            *_conv(width, 2 * width, norm),
            *_mixing(2 * width, mix_style),
            nn.MaxPool2d(2),
            *_conv(2 * width, 4 * width, norm),
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class StridedCNN(nn.Module):
    """Up to four 5x5 convolutions of stride 2 with a norm after each, and a linear classifier on the final feature
    map.

    There are `width` channels at first, then twice and four times as many, in `depth` layers. Input (N, C, H, W) with
    H and W at least 16, output (N, classes) logits. With strides instead of poolings, training on 64x64 images takes
    a third of the time on a CPU.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        norm: NormFactory | None = None,
        *,
        shape: tuple[int, int, int],
        width: int = 32,
        depth: int = 4,
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 4:
            raise ValueError(f"depth is {depth}: it is a number of layers, from 1 to 4")
        norm = norm or plain_batch_norm()
        widths = [in_channels, width, 2 * width, 4 * width, 4 * width][: depth + 1]
        layers: list[nn.Module] = []
        height, across = shape[1:]
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 5, stride=2, padding=2), norm(after), nn.ReLU()]
            height, across = -(-height // 2), -(-across // 2)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1] * height * across, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class MLP(nn.Module):
    """Flattened pixels, `depth` hidden layers of `width` with a norm each, and a linear classifier.

    Input (N, C, H, W) of `pixels` = C * H * W values, output (N, classes) logits.
    """

    def __init__(
        self, pixels: int, classes: int, norm: NormFactory | None = None, *, width: int = 128, depth: int = 2
    ) -> None:
        super().__init__()
        norm = norm or plain_batch_norm(ndim=1)
        widths = [pixels, *[width] * depth]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), norm(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], classes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.layers(x)
        return logits


def _mixing(channels: int, probability: float) -> list[nn.Module]:
    return [MixStyle(channels, probability)] if probability else []


def _conv(inputs: int, outputs: int, norm: NormFactory) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
