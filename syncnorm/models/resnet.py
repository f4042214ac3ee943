"""Residual networks in their CIFAR forms (He et al., arXiv 1512.03385).

ResNet-20/32/56: three stages of 16, 32 and 64 channels (or of another width, doubled twice) with n = 3, 5, 9 blocks
each; a shortcut that changes shape takes every other pixel and pads channels with zeros (option A), so it has no
parameters and no norm. ResNet-18: four
stages of 64 to 512 channels with two blocks each, after a 3x3 convolution without pooling; shortcuts that change
shape are 1x1 convolutions with a norm (option B).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.models.factory import NormFactory, plain_batch_norm


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a norm each, added to the shortcut: (N, C, H, W) to (N, C', H / s, W / s)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormFactory, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.stride, self.extra_channels = stride, outputs - inputs
        self.shortcut: nn.Module | None = None
        if projection and (stride != 1 or inputs != outputs):
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(shortcut(x) + block(x))."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self._skip(x))

    def _skip(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            projected: Tensor = self.shortcut(x)
            return projected
        kept = x[:, :, :: self.stride, :: self.stride]
        before = self.extra_channels // 2
        return F.pad(kept, (0, 0, 0, 0, before, self.extra_channels - before))


class ResNet(nn.Module):
    """A CIFAR residual network: input (N, C, H, W), output (N, classes) logits.

    `stages` are (channels, blocks); each stage after the first halves the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        norm: NormFactory | None,
        stages: list[tuple[int, int]],
        projection: bool,
    ) -> None:
        super().__init__()
        norm = norm or plain_batch_norm()
        width = stages[0][0]
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1, bias=False), norm(width), nn.ReLU())
        blocks: list[nn.Module] = []
        for stage, (channels, count) in enumerate(stages):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(BasicBlock(width, channels, stride, norm, projection))
                width = channels
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(x)).mean((2, 3)))
        return logits


def thin_resnet(in_channels: int, classes: int, norm: NormFactory | None, depth: int, *, width: int = 16) -> ResNet:
    """Build ResNet-`depth` for CIFAR, depth = 6 n + 2, with stages of `width`, 2 * `width` and 4 * `width` channels.

    The paper's width is 16; width 8 has about a quarter, and width 4 a sixteenth, of its parameters.
    """
    if width < 1:
        raise ValueError(f"width is {width}: it is a number of channels, at least 1")
    blocks = (depth - 2) // 6
    stages = [(factor * width, blocks) for factor in (1, 2, 4)]
    return ResNet(in_channels, classes, norm, stages, projection=False)


def resnet18(in_channels: int, classes: int, norm: NormFactory | None = None) -> ResNet:
    """Build ResNet-18 in its CIFAR form."""
    return ResNet(in_channels, classes, norm, [(64, 2), (128, 2), (256, 2), (512, 2)], projection=True)
