"""Small networks for small images: a CNN and an MLP."""

from itertools import pairwise

from torch import Tensor, nn

from syncnorm.models.factory import NormFactory, plain_batch_norm


class SmallCNN(nn.Module):
    """Three 3x3 convolutions, a norm after each, two poolings, a linear classifier.

    Input (N, C, H, W) with H and W at least 4, output (N, classes) logits. `width` channels first, doubled at each
    pooling. Convolutions have a bias, so that the norm "none" leaves a proper network.
    """

    def __init__(self, in_channels: int, classes: int, norm: NormFactory | None = None, *, width: int = 16) -> None:
        super().__init__()
        norm = norm or plain_batch_norm()
        self.features = nn.Sequential(
            *_conv(in_channels, width, norm),
            nn.MaxPool2d(2),
            *_conv(width, 2 * width, norm),
            nn.MaxPool2d(2),
            *_conv(2 * width, 4 * width, norm),
        )
        self.classifier = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class MLP(nn.Module):
    """Flattened pixels, `depth` hidden layers of `width` with a norm each, a linear classifier.

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


def _conv(inputs: int, outputs: int, norm: NormFactory) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU()]
