"""Faults, each planted into the healthy network: the model, what `diagnose` is told, and what it has to find."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from healthy import Net, Residual, batch, trained
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncnorm


@dataclass
class Fault:
    """A planted fault: what is changed, the check that has to find it, and the layer that it has to name."""

    plant: Callable[[Any], Any]
    check: str
    layer: str
    told: dict[str, Any] = field(default_factory=dict)
    base: Callable[[], nn.Module] = Net
    shape: Any = (3, 8, 8)
    also: tuple[str, ...] = ()
    """Other checks that may find the same."""
    healthy: dict[str, Any] | None = None
    """What is told of the healthy twin, where the fault lies in what is told."""

    def model(self) -> nn.Module:
        """Return the model with the fault."""
        net = self.base()
        other = self.plant(net)
        return other if isinstance(other, nn.Module) else net


def forward_of(net: Net, forward: Callable[[Any, Tensor], Tensor]) -> None:
    net.forward = MethodType(forward, net)  # type: ignore[method-assign]


def set_(net: nn.Module, name: str, layer: nn.Module) -> None:
    net.set_submodule(name, layer)


def keep_training(net: Net) -> None:
    def train(self: Net, mode: bool = True) -> Net:
        nn.Module.train(self, mode)
        self.layer1.bn1.training = True
        return self

    net.train = MethodType(train, net)  # type: ignore[method-assign]


class OverTheBatch(nn.Module):
    """A batch norm by hand: no class, function or buffer of torch's says so."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


class AlwaysTraining(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, True, 0.1, self.eps)


class ByFunction(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, self.weight, self.bias, True)


def in_a_list(net: Net) -> None:
    norm = [nn.BatchNorm2d(8)]
    del net.bn
    forward_of(
        net,
        lambda self, x: self.fc(self.layer2(self.layer1(F.relu(norm[0](self.conv(x))))).mean((2, 3))),
    )


def checkpointed(net: Net) -> None:
    forward_of(
        net,
        lambda self, x: self.fc(
            self.layer2(checkpoint(self.layer1, F.relu(self.bn(self.conv(x))), use_reentrant=False)).mean((2, 3))
        ),
    )


def shared(net: Net) -> None:
    net.layer1.bn2 = net.layer1.bn1


def shared_over_sizes(net: Net) -> None:
    def forward(self: Net, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        return (
            self.fc(self.layer2(self.layer1(y)).mean((2, 3)))
            + self.bn(self.conv(2 + 3 * x[..., ::2, ::2])).mean((1, 2, 3))[:, None]
        )

    forward_of(net, forward)


def half_updated(net: Net) -> None:
    net(batch(16))
    net.layer2.bn1.reset_running_stats()


def uncounted(net: Net) -> None:
    net.layer2.bn1.num_batches_tracked += 100


def value(name: str, buffer: str, put: float, channels: int = 1) -> Callable[[nn.Module], None]:
    def plant(net: nn.Module) -> None:
        getattr(net.get_submodule(name), buffer).data[:channels] = put

    return plant


def attribute(name: str, key: str, put: Any) -> Callable[[nn.Module], None]:
    return lambda net: setattr(net.get_submodule(name), key, put)


def frozen_backbone(net: Net) -> None:
    for p in net.layer1.parameters():
        p.requires_grad_(False)


def other_weights(net: Net) -> None:
    """Averaged weights beside the statistics of others."""
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.5).add_(0.05)


def with_bias(net: Net) -> None:
    net.layer1.conv1 = nn.Conv2d(8, 8, 3, padding=1)


def wide_bias(net: Net) -> None:
    set_(net, "fc", nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)))


def two_norms(net: Net) -> None:
    net.layer1.bn1 = nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(2, 8))


def into_softmax(net: Net) -> None:
    set_(net, "fc", nn.Sequential(nn.Linear(16, 5, bias=False), nn.BatchNorm1d(5), nn.Softmax(1)))


def synchronised_part(net: Net) -> None:
    syncnorm.convert(net, "sync_bn")
    net.extra = nn.Sequential(syncnorm.SyncBatchNorm(8))  # a branch that this input does not take


def moved_data(net: Net) -> None:
    """The same as data that are not normalised as in training."""
    conv = net.conv
    conv.register_forward_pre_hook(lambda _, args: (9 + 3 * args[0],))


def nothing(net: nn.Module) -> None:
    """The fault lies in what is told."""


def images(count: int, seed: int = 0) -> Tensor:
    """Return the images of `batch`, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return batch(count)


def coloured(count: int) -> Tensor:
    """Return images that differ in their mean more than within themselves."""
    return 0.3 * images(count) + 2 * torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(0))


def class_of(count: int, first: int, last: int) -> Tensor:
    """Return labels from `first` to `last`, in turn."""
    return first + torch.arange(count) % (last - first + 1)


class Positions(nn.Module):
    """A 1-D network that pools over all positions, padded ones too; or over those alone that are not."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.conv, self.bn, self.fc = nn.Conv1d(3, 8, 3, padding=1, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 5)
        nn.init.normal_(self.bn.bias)

    def forward(self, x: Tensor) -> Tensor:
        there = (x != 0).any(1)
        with syncnorm.mask(there if self.masked else None):
            y = F.relu(self.bn(self.conv(x)))
        if not self.masked:
            return self.fc(y.mean(2))
        return self.fc((y * there[:, None]).sum(2) / there.sum(1, keepdim=True))


def summed_first(net: Net) -> None:
    """Batch norm after the residual sum of the first block, in what the next block's shortcut carries on."""
    net.layer3 = Residual(8, 8)
    net.layer1.forward = MethodType(  # type: ignore[method-assign]
        lambda self, x: F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))) + x)), net.layer1
    )
    forward_of(
        net,
        lambda self, x: self.fc(self.layer2(self.layer3(self.layer1(F.relu(self.bn(self.conv(x)))))).mean((2, 3))),
    )


def pooled_first(net: Net) -> None:
    """Batch norm of the mean over an image, which varies less if images are pasted together."""
    net.head = nn.BatchNorm1d(16)
    forward_of(net, lambda self, x: self.fc(self.head(self.features(x).mean((2, 3)))))


def skips(net: Net) -> None:
    """A branch that only dark images take, synchronised."""
    syncnorm.convert(net, "sync_bn")

    def forward(self: Net, x: Tensor) -> Tensor:
        y = F.relu(self.bn(self.conv(x)))
        return self.fc(self.layer2(self.layer1(y) if x.mean() < 0 else y).mean((2, 3)))

    forward_of(net, forward)


def everywhere(net: Net) -> None:
    syncnorm.convert(net, "sync_bn")


RANKS = {"batch_size": 2, "world_size": 4}
FAULTS: dict[str, Fault] = {
    "a part in training mode": Fault(
        lambda net: (net.eval(), net.layer1.bn1.train()), "left_in_training", "layer1.bn1"
    ),
    "a train method that forgets": Fault(keep_training, "stays_in_training", "layer1.bn1"),
    "no running statistics": Fault(
        lambda net: set_(net, "layer1.bn1", nn.BatchNorm2d(8, track_running_stats=False)),
        "depends_on_batch",
        "layer1.bn1",
    ),
    "a norm by hand": Fault(
        lambda net: set_(net, "layer1.bn1", OverTheBatch(8)),
        "depends_on_batch",
        "layer1.bn1",
        also=("unconvertible",),
    ),
    "a norm by hand, over ranks": Fault(
        lambda net: set_(net, "layer1.bn1", OverTheBatch(8)),
        "unconvertible",
        "layer1.bn1",
        {"batch_size": 32, "world_size": 4},
        also=("depends_on_batch",),
    ),
    "training=True by hand": Fault(
        lambda net: set_(net, "layer1.bn1", AlwaysTraining(8)),
        "moves_in_evaluation",
        "layer1.bn1",
        also=("unconvertible", "depends_on_batch"),
    ),
    "F.batch_norm without statistics": Fault(
        lambda net: set_(net, "layer1.bn1", ByFunction(8)), "depends_on_batch", "layer1.bn1", also=("unconvertible",)
    ),
    "frozen weights, moving statistics": Fault(frozen_backbone, "frozen_but_moving", "layer1.bn2"),
    "dropout before a norm": Fault(
        lambda net: set_(net, "conv", nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Dropout(0.5))),
        "dropout_before",
        "bn",
    ),
    "NaN": Fault(value("layer1.bn1", "running_mean", float("nan")), "not_finite", "layer1.bn1"),
    "infinite": Fault(value("layer1.bn1", "running_var", float("inf")), "not_finite", "layer1.bn1"),
    "negative variance": Fault(value("layer1.bn1", "running_var", -0.1), "negative_variance", "layer1.bn1"),
    "zero variance": Fault(value("layer1.bn1", "running_var", 0.0), "zero_variance", "layer1.bn1"),
    "statistics of one layer at the start": Fault(half_updated, "never_updated", "layer2.bn1"),
    "counted without effect": Fault(uncounted, "never_updated", "layer2.bn1"),
    "a trained layer's statistics at the start": Fault(
        lambda net: [layer.reset_running_stats() for layer in syncnorm.batch_norms(net).values()],
        "never_updated",
        "bn",
        base=trained,
    ),
    "an averaged counter": Fault(
        lambda net: net.bn._buffers.update(num_batches_tracked=torch.tensor(0.0)), "averaged_counter", "bn"
    ),
    "a flag against the buffers": Fault(attribute("bn", "track_running_stats", False), "contradicting_flag", "bn"),
    "a flag without buffers": Fault(
        lambda net: net.bn._buffers.update(running_mean=None, running_var=None),
        "contradicting_flag",
        "bn",
        also=("depends_on_batch",),
    ),
    "momentum of Keras": Fault(attribute("bn", "momentum", 0.99), "odd_momentum", "bn"),
    "momentum 0": Fault(attribute("bn", "momentum", 0.0), "odd_momentum", "bn"),
    "momentum None": Fault(attribute("bn", "momentum", None), "odd_momentum", "bn"),
    "eps for momentum": Fault(lambda net: set_(net, "bn", nn.BatchNorm2d(8, 0.1)), "odd_eps", "bn"),
    "eps 0": Fault(attribute("bn", "eps", 0.0), "odd_eps", "bn", shape=None),
    "averaged weights": Fault(other_weights, "misfitting_statistics", "bn", base=trained, shape=batch(32)),
    "other data": Fault(moved_data, "misfitting_statistics", "bn", base=trained, shape=batch(32)),
    "two samples a device": Fault(wide_bias, "few_values", "fc.1", RANKS, also=("per_device_statistics",)),
    "per-device statistics": Fault(
        nothing, "per_device_statistics", "layer2.down.1", RANKS, healthy={"batch_size": 32, "world_size": 4}
    ),
    "accumulation": Fault(
        nothing,
        "accumulated_statistics",
        "bn",
        {"batch_size": 2, "accumulate": 4},
        healthy={"batch_size": 16, "accumulate": 4},
    ),
    "activation checkpointing": Fault(checkpointed, "counted_twice", "layer1.bn2"),
    "one module at two depths": Fault(shared, "several_depths", "layer1.bn1"),
    "one module at two sizes": Fault(shared_over_sizes, "several_depths", "bn"),
    "a synchronised layer that is skipped": Fault(
        synchronised_part, "unreached", "extra.0", {"batch_size": 32, "world_size": 2}
    ),
    "sorted labels": Fault(
        nothing,
        "skewed_shards",
        "",
        {"shards": [class_of(100, 0, 4), class_of(100, 5, 9)]},
        healthy={"shards": [class_of(100, 0, 9), class_of(90, 0, 9).flip(0)]},
    ),
    "another camera on each rank": Fault(
        nothing,
        "skewed_shards",
        "bn",
        {"shards": [images(32), 3 + 0.3 * images(32, 1)]},
        healthy={"shards": [images(32), images(24, 1)]},
    ),
    "a branch that one rank takes": Fault(
        skips,
        "uneven_reach",
        "layer1.bn1",
        {"shards": [images(8) + 3, images(8) - 3]},
        healthy={"shards": 2 * [images(8) + 3]},
    ),
    "MixUp": Fault(nothing, "mixup_before", "bn", {"mixup": 1.0}, shape=images(64), healthy={"mixup": 0.2}),
    "CutMix before a pooling": Fault(
        pooled_first, "cutmix_before", "head", {"cutmix": 1.0}, shape=coloured(64), healthy={"cutmix": 1.0}
    ),
    "padding that counts": Fault(
        lambda net: Positions(masked=False),
        "depends_on_padding",
        "bn",
        {"padded": 2},
        base=lambda: Positions(masked=True),
        shape=images(16).flatten(2)[:, :, :12],
    ),
    "a bias before a norm": Fault(with_bias, "dead_bias", "layer1.conv1"),
    "a bias of a linear layer": Fault(wide_bias, "dead_bias", "fc.0"),
    "dead channels": Fault(value("layer1.bn1", "weight", 1e-6, 6), "dead_channels", "layer1.bn1"),
    "a dead layer": Fault(value("bn", "weight", 0.0, 8), "dead_channels", "bn"),
    "two norms in a row": Fault(two_norms, "two_in_a_row", "layer1.bn1.1"),
    "a norm before the softmax": Fault(into_softmax, "before_softmax", "fc.1"),
    "a norm after the sum": Fault(summed_first, "after_sum", "layer1.bn2"),
    "groups of two values": Fault(
        lambda net: set_(net, "fc", nn.Sequential(nn.Linear(16, 16), nn.GroupNorm(8, 16), nn.Linear(16, 5))),
        "small_groups",
        "fc.1",
    ),
    "a layer norm over one value": Fault(
        lambda net: set_(net, "fc", nn.Sequential(nn.Linear(16, 1), nn.LayerNorm(1))), "small_groups", "fc.1"
    ),
    "a norm in a list": Fault(in_a_list, "unlisted", ""),
    "name matching": Fault(nothing, "missed_by_name", "layer2.down.1", {"policy": "fedavg"}, healthy={}),
    "parameters alone": Fault(nothing, "left_by_parameters", "", {"policy": "fedavg"}, healthy={}),
    "a stepped variance": Fault(
        nothing,
        "stepped_by_server",
        "",
        {"policy": "fedavg", "algorithm": "fedadam"},
        healthy={"policy": "fedavg", "algorithm": "fedprox"},
    ),
    "a policy for nothing": Fault(
        lambda net: syncnorm.convert(net, "gn"), "policy_without_effect", "", {"policy": "fedbn"}
    ),
    "a batch of one at a client": Fault(
        wide_bias,
        "single_samples",
        "fc.1",
        {"policy": "fedavg", "batch_size": 16, "client_sizes": (48, 33)},
        healthy={"policy": "fedavg", "batch_size": 16, "client_sizes": (48, 34)},
    ),
    "unfolded": Fault(nothing, "unfolded", "layer1.bn1", {"deploy": True}, healthy={}),
}
