"""A small U-Net (arXiv 1505.04597) for dense prediction: one output per class at every pixel."""

import torch
from torch import Tensor, nn

from syncnorm.models.factory import NormFactory, plain_batch_norm


class UNet(nn.Module):
    """An encoder of 3x3 convolutions and 2x2 poolings, and a decoder that also sees the encoder's maps.

    Input (N, C, H, W), output (N, classes, H, W) logits; H and W are multiples of 2^depth. There are `width` channels
    at full resolution, doubled at each of the `depth` poolings up to four times as many. Every level has one
    convolution on the way down and one on the way up, each with a norm; upsampling repeats pixels. A norm layer at
    level l has H W / 4^l positions a sample. Convolutions have a bias, so that the network also works with the norm
    "none". With width 8 and depth 3 there are 28,000 parameters, with width 4 some 7,000.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        norm: NormFactory | None = None,
        *,
        shape: tuple[int, int, int],
        width: int = 4,
        depth: int = 3,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is {depth}: it is the number of poolings, at least 1")
        if any(side % 2**depth for side in shape[1:]):
            raise ValueError(
                f"images of {shape[1]} x {shape[2]} cannot be halved {depth} times: change depth or size"
            )
        norm = norm or plain_batch_norm()
        widths = [width * min(2**level, 4) for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _conv(before, after, norm) for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(
            _conv(below + beside, beside, norm) for below, beside in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.pool, self.upsample = nn.MaxPool2d(2), nn.Upsample(scale_factor=2)
        self.classifier = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes, H, W)."""
        maps = [self.down[0](x)]
        for layer in self.down[1:]:
            maps.append(layer(self.pool(maps[-1])))
        y = maps.pop()
        for layer in self.up:
            y = layer(torch.cat([self.upsample(y), maps.pop()], dim=1))
        logits: Tensor = self.classifier(y)
        return logits


def _conv(inputs: int, outputs: int, norm: NormFactory) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), nn.ReLU())
