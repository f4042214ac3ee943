"""Models as others write them: names, orders and forwards that this repository's own do not have."""

from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(channels, 8, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(8, 4, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        bottleneck = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        return self.conv2(self.relu2(self.norm2(bottleneck)))


class DenseBlock(nn.ModuleDict):
    """A block that hands a list of all features so far from layer to layer."""

    def __init__(self, channels: int) -> None:
        super().__init__({f"denselayer{i + 1}": DenseLayer(channels + 4 * i) for i in range(2)})

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.values():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(3, 8, 3, padding=1, bias=False),
                norm0=nn.BatchNorm2d(8),
                relu0=nn.ReLU(inplace=True),
                denseblock1=DenseBlock(8),
                transition1=nn.Sequential(
                    OrderedDict(
                        norm=nn.BatchNorm2d(16), relu=nn.ReLU(), conv=nn.Conv2d(16, 8, 1), pool=nn.AvgPool2d(2)
                    )
                ),
                denseblock2=DenseBlock(8),
                norm5=nn.BatchNorm2d(16),
            )
        )
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(F.relu(self.features(x)), 1), 1))


def depthwise(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU6(),
        nn.Conv2d(inputs, outputs, 1, groups=2),
        nn.BatchNorm2d(outputs),
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down, self.pool = depthwise(8, 16), nn.MaxPool2d(2)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=4)
        self.up_bn = nn.BatchNorm2d(8, eps=1e-3)
        self.merge, self.outc = depthwise(16, 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.inc(x)
        up = F.relu(self.up_bn(self.up(self.down(self.pool(skip)))))
        return self.outc(self.merge(torch.cat([skip, up], dim=1)))


class Shared(nn.Module):
    """One block in two places, under two names."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.stem = nn.Conv2d(3, 4, 1)
        self.left, self.right = block, nn.Sequential(block, nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.right(self.left(self.stem(x)))


class PreActivation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv0(x))
        return x + self.conv2(self.bn2(self.conv1(F.relu(self.bn1(x)))).relu())


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)), "act": nn.ELU()})
            for _ in range(2)
        )
        self.heads = nn.ModuleDict({"a": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "b": nn.Linear(3, 2)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        for stage in self.stages:
            x = stage["act"](input=stage["body"](x))
        return {name: head(x.mean((2, 3))) for name, head in self.heads.items()}


class Lists(nn.Module):
    """Registered layers that the forward finds in plain attributes, lists, tuples and dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = []
        for i in range(2):
            self.add_module(f"conv{i}", nn.Conv2d(3, 3, 1))
            norm = nn.BatchNorm2d(3)
            self.add_module(f"norm{i}", norm)
            self.norms.append(norm)
        self.pair = (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), "a pair")
        self.by_name = {"conv": nn.Conv2d(3, 2, 1), "norm": nn.BatchNorm2d(2)}
        for name, layer in (("c", self.pair[0]), ("n", self.pair[1]), *self.by_name.items()):
            self.add_module(name, layer)
        self.__dict__["first"] = self.conv0

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[1](self.conv1(self.norms[0](self.first(x)).relu())).relu()
        return self.by_name["norm"](self.by_name["conv"](self.pair[1](self.pair[0](x)).relu()))


class Branching(nn.Module):
    """The data say which way to go, so that nothing can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.often = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        for _ in range(1 + int(x.abs().sum() * 8) % 3):
            x = self.often(x)
        return x


class Misordered(nn.Module):
    """Modules in another order than they run in, and not to be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](self.parts[1](x)) if x.numel() > 0 and x.sum() < 1e9 else x


class OwnNorm(nn.Module):
    """Batch norm written out with F.batch_norm, on buffers of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


def sequential(conv: type[nn.Module], norm: type[nn.Module]) -> nn.Module:
    first, second = (conv(3, 6, 3, padding=1, bias=False), conv(6, 4, 3, groups=2))
    return nn.Sequential(first, norm(6), nn.ReLU(), second, norm(4, affine=False))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4), nn.BatchNorm1d(4)
    )


def lazy() -> nn.Module:
    layers = [nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)]
    return nn.Sequential(*layers, nn.LazyBatchNorm1d())


IMAGE = (3, 8, 8)
# How to build it, a sample's shape, and the batch norms that stand behind no convolution.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "densenet": (
        DenseNet,
        IMAGE,
        [
            *(f"features.denseblock1.denselayer{i}.norm1" for i in (1, 2)),
            "features.transition1.norm",
            *(f"features.denseblock2.denselayer{i}.norm1" for i in (1, 2)),
            "features.norm5",
        ],
    ),
    "unet": (UNet, IMAGE, []),
    "shared": (Shared, IMAGE, ["left.1"]),
    "preactivation": (PreActivation, IMAGE, ["bn1"]),
    "containers": (Containers, IMAGE, []),
    "lists": (Lists, IMAGE, []),
    "branching": (Branching, IMAGE, []),
    "signals": (lambda: sequential(nn.Conv1d, nn.BatchNorm1d), (3, 16), []),
    "volumes": (lambda: sequential(nn.Conv3d, nn.BatchNorm3d), (3, 5, 5, 5), []),
    "mlp": (mlp, (12,), []),
    "lazy": (lazy, IMAGE, []),
    "torch's synchronised": (lambda: nn.SyncBatchNorm.convert_sync_batchnorm(UNet()), IMAGE, []),
}
