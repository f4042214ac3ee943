"""Correctly written models of many kinds, small, in which nothing is to be found."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.down = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class Net(nn.Module):
    """A small residual network: the healthy model in which tests plant faults."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = Residual(8, 8), Residual(8, 16, 2)
        self.fc = nn.Linear(16, 5)

    def features(self, x: Tensor) -> Tensor:
        return self.layer2(self.layer1(F.relu(self.bn(self.conv(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


def zero_init() -> nn.Module:
    """As many start: the last norm of a residual branch at 0."""
    net = Net()
    for block in (net.layer1, net.layer2):
        nn.init.zeros_(block.bn2.weight)
    return net


def gan_init() -> nn.Module:
    """Weights of norms drawn around 1, as DCGAN does."""
    net = Net()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, 0.02)
    return net


class PreActivation(nn.Module):
    def __init__(self, zeros: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + conv(F.relu(norm(x)))
        return self.fc(F.relu(self.norms[2](x)).mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual with squeeze and excitation, as in MobileNet and EfficientNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.body = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01),
            nn.SiLU(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide, eps=1e-3, momentum=0.01),
            nn.SiLU(),
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 4, 1), nn.SiLU(), nn.Conv2d(4, wide, 1))
        self.end = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels, eps=1e-3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + self.end(y * self.squeeze(y).sigmoid())


def mobile() -> nn.Module:
    """A MobileNet."""
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    return nn.Sequential(*stem, Inverted(8), Inverted(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


class Transformer(nn.Module):
    """A vision transformer: norms first, or last as in BERT; a norm of the patches as well, as in Swin and CLIP."""

    def __init__(self, norm_first: bool = True, patch_norm: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 2, 2)
        self.patch_norm = nn.LayerNorm(16) if patch_norm else nn.Identity()
        layers = [
            nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=True, norm_first=norm_first) for _ in range(2)
        ]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(16) if norm_first else nn.Identity()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch_norm(self.patch(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.layers(tokens)).mean(1))


class UNet(nn.Module):
    """A U-Net with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self.double(3, 16), self.double(16, 32)
        self.up, self.merge = nn.ConvTranspose2d(32, 16, 2, stride=2), self.double(32, 16)
        self.out = nn.Conv2d(16, 2, 1)

    @staticmethod
    def double(inputs: int, outputs: int) -> nn.Sequential:
        parts = [
            (nn.Conv2d(c, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.ReLU()) for c in (inputs, outputs)
        ]
        return nn.Sequential(*(layer for part in parts for layer in part))

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        return self.out(self.merge(torch.cat([first, self.up(self.down2(F.max_pool2d(first, 2)))], 1)))


class ConvNext(nn.Module):
    """Blocks with one layer norm over channels and a small scale of the branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 2, 2), nn.LayerNorm(16)
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.LayerNorm(16)
        self.wide, self.narrow = nn.Linear(16, 32), nn.Linear(32, 16)
        self.scale = nn.Parameter(torch.full((16,), 1e-6))
        self.head_norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)
        return self.head(self.head_norm(x.mean((2, 3))))


class RepVgg(nn.Module):
    """Three branches with norms that are added, one of them a norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.large = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.small = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.identity, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        return self.fc(F.relu(self.large(x) + self.small(x) + self.identity(x)).mean((2, 3)))


class Summed(nn.Module):
    """Branches without an activation, summed and then normalised: they fold into one convolution (RepViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8))
        self.bn, self.wide, self.narrow = nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = self.bn(self.deep(x) + x)
        return self.fc((x + self.narrow(F.gelu(self.wide(x)))).mean((2, 3)))


class PreActivationDown(nn.Module):
    """Pre-activation blocks whose shortcut is a projection of the norm's output, as in ResNet-v2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(4))
        self.down, self.fc = nn.Conv2d(8, 8, 1, bias=False), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = x + self.convs[1](F.relu(self.convs[0](F.relu(self.norms[0](x)))))
        y = F.relu(self.norms[1](x))
        x = self.down(y) + self.convs[3](F.relu(self.convs[2](y)))
        return self.fc(F.relu(self.norms[2](x)).mean((2, 3)))


class Standardised(nn.Conv2d):
    """A convolution that standardises its weight by the function of batch norm, as many write it."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, padding=1)


def weight_standardised() -> nn.Module:
    """Convolutions with standardised weights, and group norm beside them."""
    parts = [(Standardised(inputs, 16, 3, padding=1), nn.GroupNorm(2, 16), nn.ReLU()) for inputs in (3, 16)]
    return nn.Sequential(*(layer for part in parts for layer in part), nn.Conv2d(16, 2, 1))


def dropout_last() -> nn.Module:
    """Dropout after the last batch norm, and within a branch that a norm of each sample follows."""
    net = Net()
    net.fc = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 5))  # type: ignore[assignment]
    return net


class Siamese(nn.Module):
    """One network on both halves of the input: its batch norms run twice, at one depth."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) - self.net(x.flip(-1))


class Recurrent(nn.Module):
    """A GRU over rows, with a layer norm and a batch norm over features."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.norm = nn.GRU(24, 16, batch_first=True), nn.LayerNorm(16)
        self.lin, self.bn, self.out = nn.Linear(16, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(x.transpose(1, 2).flatten(2))
        return self.out(F.relu(self.bn(self.lin(self.norm(y[:, -1])))))


class Generator(nn.Module):
    """A decoder with transposed convolutions and tanh; its biases stand after the norms."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8), nn.LeakyReLU(0.2))
        self.up = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x)).tanh()


def instance() -> nn.Module:
    """Style transfer: instance norm without statistics."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )


def trained() -> nn.Module:
    """A network after some steps of training, in evaluation mode."""
    torch.manual_seed(0)
    net = Net().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    for _ in range(40):
        x = batch(32)
        loss = F.cross_entropy(net(x), (x.mean((1, 2, 3)) > 0).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def batch(count: int) -> Tensor:
    """Return images that differ in brightness, (count, 3, 8, 8)."""
    return torch.randn(count, 3, 8, 8) + torch.randn(count, 1, 1, 1)


HEALTHY: dict[str, Callable[[], nn.Module]] = {
    "residual": Net,
    "zero_init": zero_init,
    "gan_init": gan_init,
    "trained": trained,
    "pre_activation": PreActivation,
    "mobile": mobile,
    "transformer": Transformer,
    "norms_last": lambda: Transformer(norm_first=False),
    "patch_norm": lambda: Transformer(patch_norm=True),
    "unet": UNet,
    "convnext": ConvNext,
    "repvgg": RepVgg,
    "summed": Summed,
    "pre_activation_down": PreActivationDown,
    "dropout_last": dropout_last,
    "weight_standardised": weight_standardised,
    "siamese": Siamese,
    "recurrent": Recurrent,
    "generator": Generator,
    "instance": instance,
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
}
