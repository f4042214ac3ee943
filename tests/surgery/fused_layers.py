"""Batch norms that carry an activation, dropout or more, as models of the field have them."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, batch_norms


class Children(nn.BatchNorm2d):
    """Dropout and activation as children, one of them with a weight per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.PReLU(channels, init=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


class WrittenOut(nn.BatchNorm2d):
    """The forward of batch norm written out, and an activation in place."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4
        newest = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
        batch = self.training or self.running_mean is None
        y = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, batch, newest, self.eps)
        return self.act(self.drop(y))


class Functional(nn.BatchNorm2d):
    """No children, and a function that looks at all channels of a position."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return F.silu(y) + y.mean(1, keepdim=True)


class OwnTensors(nn.BatchNorm2d):
    """A parameter, a buffer and a number of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.slope = nn.Parameter(torch.full((1, channels, 1, 1), 0.3))
        self.register_buffer("cap", torch.tensor(2.0))
        self.shift = 0.25

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where(y > 0, y, y * self.slope).minimum(self.cap) + self.shift


class Synchronised(nn.SyncBatchNorm):
    """As torch's synchronised layer gets an activation: set from outside."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.act(y) if hasattr(self, "act") else y


def synchronised(channels: int) -> nn.Module:
    layer = Synchronised(channels)
    layer.act = nn.Hardswish()
    return layer


class Ours(SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "children": Children,
    "written out": WrittenOut,
    "functional": Functional,
    "own tensors": OwnTensors,
    "synchronised": synchronised,
    "ours": Ours,
}


X = torch.randn(4, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def trained(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    layer = LAYERS[kind]
    body = [nn.Conv2d(3, 4, 3), layer(4), nn.Conv2d(4, 4, 1, bias=False), layer(4)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(64, 5)).double()
    for _ in range(3):
        model(torch.randn_like(X) * 2 + 1)
    for norm in batch_norms(model).values():
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
    return model.eval()


def out(model: nn.Module, x: Tensor = X) -> Tensor:
    torch.manual_seed(1)
    return model(x)
