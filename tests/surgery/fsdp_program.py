"""Models in FSDP beside the same ones in DDP: checks for each gloo rank of a torchrun, of 2 or of 4."""

import copy
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import syncnorm
from syncnorm.errors import UserError

CLOSE = {"rtol": 1e-12, "atol": 1e-12}
WHOLE = StateDictOptions(full_state_dict=True)


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return the same small network on every rank."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), block, nn.Flatten(), nn.Linear(24, 3)).to(
        dtype
    )


def synced(dtype: torch.dtype = torch.float64, **options: Any) -> nn.Module:
    """Return the network with synchronised batch norm."""
    return syncnorm.convert(network(dtype), "sync_bn", **options)


def mine(step: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return this rank's images of one step."""
    generator = torch.Generator().manual_seed(10 * dist.get_rank() + step)
    return torch.randn(3, 2, 6, 6, generator=generator, dtype=dtype)


def line() -> DeviceMesh:
    """Return all ranks as a mesh of one dimension."""
    return init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("shard",))


def grid() -> DeviceMesh:
    """Return four ranks as a mesh of two dimensions."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))


def by_ddp(model: nn.Module) -> DistributedDataParallel:
    """Wrap the network so that each rank keeps its own statistics, as in FSDP."""
    return DistributedDataParallel(model, broadcast_buffers=False)


def fsdp2(model: nn.Module, mesh: DeviceMesh | None = None, **options: Any) -> nn.Module:
    """Shard a part of the network, and the rest of it."""
    mesh = mesh or line()
    fully_shard(model[3], mesh=mesh, **options)  # type: ignore[index]
    return fully_shard(model, mesh=mesh, **options)


def fsdp1(model: nn.Module, orig: bool = False, **options: Any) -> nn.Module:
    """Wrap a part of the network, and the rest of it."""
    policy = ModuleWrapPolicy({nn.Sequential})
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=orig, device_id=cpu, **options)


def train(model: nn.Module, steps: int = 3, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Train with momentum and weight decay, which move what has a gradient of zeros as well."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=False)
        model(mine(step, dtype)).float().square().mean().backward()
        optimizer.step()
        if step == 1:
            model.train()  # as every epoch does
    return model


def whole(model: nn.Module) -> dict[str, Tensor]:
    """Return what a checkpoint holds, on rank 0; on other ranks nothing."""
    return get_model_state_dict(model, options=WHOLE)


def same(model: nn.Module, right: nn.Module, within: dict[str, float] = CLOSE) -> None:
    """Check that checkpoints of both are the same, with parameters, statistics and names."""
    found, wanted = whole(model), whole(right)
    assert found.keys() == wanted.keys(), (found.keys(), wanted.keys())
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, **within)


def check_equal_to_ddp() -> None:
    """Steps, and so gradients, statistics and checkpoints are those of DDP, whichever came first."""
    right = train(DistributedDataParallel(synced()))
    ways: list[Callable[[], nn.Module]] = [
        lambda: fsdp2(synced()),
        lambda: syncnorm.convert(fsdp2(network()), "sync_bn"),
        lambda: fsdp1(synced()),
        lambda: fsdp1(synced(), orig=True),
    ]
    if dist.get_world_size() == 4:
        ways.append(lambda: fsdp2(synced(), grid()))
        ways.append(lambda: syncnorm.convert(fsdp2(network(), grid()), "sync_bn"))
        ways.append(lambda: fsdp1(synced(), device_mesh=grid(), sharding_strategy=ShardingStrategy.HYBRID_SHARD))
    for way in ways:
        same(train(way()), right)


def check_a_trained_model_changes_layers() -> None:
    """Convert and revert after forwards, steps and checkpoints: FSDP2 goes on with the layers that are there."""
    model, right = fsdp2(network()), by_ddp(network())
    for each in (model, right):
        train(each)
        each.eval()(mine())  # after which FSDP2 leaves the outermost parameters whole
    syncnorm.convert(model, "sync_bn").train()
    right = by_ddp(syncnorm.convert(right.module, "sync_bn").train())
    assert all(isinstance(p, DTensor) for p in model.parameters())
    same(train(model), train(right))
    syncnorm.revert(model)
    right = by_ddp(syncnorm.revert(right.module))
    assert type(model[1]) is nn.BatchNorm2d  # type: ignore[index]
    same(train(model), train(right))
    fresh = fsdp2(network())
    set_model_state_dict(fresh, whole(model), options=WHOLE)
    same(fresh, model)


def check_mixed_precision() -> None:
    """In bfloat16 the statistics stay float32, and the step is DDP's under a bound of the format."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = train(fsdp2(synced(torch.float32), mp_policy=policy), dtype=torch.float32)
    right = train(DistributedDataParallel(synced(torch.float32)), dtype=torch.float32)
    assert all(layer.running_var.dtype is torch.float32 for layer in syncnorm.batch_norms(model).values())
    same(model, right, {"rtol": 0.05, "atol": 0.05})
    syncnorm.recalibrate(model, [mine(0, torch.float32)])
    assert all(layer.running_var.dtype is torch.float32 for layer in syncnorm.batch_norms(model).values())


def check_recalibrate() -> None:
    """Ranks with unequally many batches run the model together; a rank's bad batch is an error of all."""
    batches = [mine(step) for step in range(1 + dist.get_rank())]
    right = syncnorm.recalibrate(synced(), batches)
    forms = [fsdp2(synced()), fsdp1(synced()), fsdp1(synced(), orig=True)]
    if dist.get_world_size() == 4:
        forms.append(fsdp2(synced(), grid()))
    for model in forms:
        same(syncnorm.recalibrate(model, batches), right)
        assert list(syncnorm.batch_norms(model)) == ["1", "3.1"]
    first = dist.get_rank() == 0
    with pytest.raises(UserError, match="rank 0 of the model's ranks has no batch"):
        syncnorm.recalibrate(forms[0], [] if first else batches)
    bad: list[Any] = [*batches, "no tensor"]
    with pytest.raises(UserError, match="rank 0: a batch to measure batch norms with is a str"):
        syncnorm.recalibrate(forms[0], bad if first else batches)
    same(syncnorm.recalibrate(forms[0], batches), right)


def check_freeze() -> None:
    """Frozen before or after sharding, at once or from a step on, with or without weight and bias: as in DDP."""

    def both(after: bool, make: Callable[[nn.Module], nn.Module], **options: Any) -> None:
        model = synced()
        if after:
            model = syncnorm.freeze(make(model), "3", **options)
        else:
            model = make(syncnorm.freeze(model, "3", **options))
        right = syncnorm.freeze(synced(), "3", **options)
        same(train(model, 4), train(DistributedDataParallel(right, find_unused_parameters=True), 4))

    for after in (False, True):
        both(after, fsdp1)
        both(after, fsdp2, affine=True, from_step=1)
    both(True, fsdp2, affine=True)
    both(False, lambda model: fsdp1(model, orig=True), affine=True)
    model = syncnorm.unfreeze(syncnorm.freeze(fsdp2(synced()), affine=True))
    same(train(model), train(DistributedDataParallel(synced())))


def check_refused() -> None:
    """What FSDP cannot serve is refused in a sentence, and the model stays as it is."""
    by_itself = network()
    fully_shard(by_itself[1], mesh=line())
    fully_shard(by_itself, mesh=line())
    sharded, flat = fsdp2(network()), fsdp1(network())
    frozen = fsdp1(syncnorm.freeze(synced(), affine=True, from_step=1))
    for part, words in (
        (lambda: syncnorm.convert(flat, "sync_bn"), "FSDP1.*change the model before you wrap it"),
        (lambda: syncnorm.revert(fsdp1(synced())), "FSDP1.*change the model before you wrap it"),
        (lambda: syncnorm.freeze(flat, affine=True), "FSDP1.*before you wrap it, with use_orig_params=True"),
        (lambda: train(frozen), "SyncBatchNorm of . channels was frozen with affine=True from a step on.*FSDP1"),
        (lambda: syncnorm.convert(by_itself, "sync_bn"), "layer '1' is sharded by itself"),
        (lambda: syncnorm.convert(sharded, "frn"), r"layer '1' would become a FilterResponseNorm, .*\(tau\)"),
        (lambda: syncnorm.convert(sharded, "ws"), "norm 'ws' normalises weights, which fully_shard has sharded"),
        (lambda: syncnorm.fold(sharded), "fold needs whole parameters"),
        (lambda: syncnorm.tent(sharded), "TENT needs whole parameters"),
        (lambda: syncnorm.accumulate(sharded, [mine()], lambda m, x: m(x).sum()), "accumulation needs whole"),
        (lambda: syncnorm.join(sharded), "join takes a model in DistributedDataParallel"),
    ):
        with pytest.raises(UserError, match=words):
            part()
    assert list(syncnorm.convert_report(sharded, "frn").refused) == ["1", "3.1"]
    assert list(syncnorm.convert_report(sharded, "sync_bn").converted) == ["1", "3.1"]
    same(train(sharded), train(by_ddp(network())))


def check_groups() -> None:
    """A dimension of a mesh, a size and a node name the ranks that share statistics."""
    rank = dist.get_rank()
    mesh = grid()
    os.environ["GROUP_RANK"] = str(rank % 2)  # two nodes of two ranks each, whose ranks alternate
    ways: list[tuple[dict[str, Any], list[list[int]]]] = [
        ({"process_group": mesh["shard"]}, [[0, 1], [2, 3]]),
        ({"process_group": mesh["replicate"]}, [[0, 2], [1, 3]]),
        ({"group_size": 2}, [[0, 1], [2, 3]]),
        ({"group_size": "node"}, [[0, 2], [1, 3]]),
    ]
    for options, groups in ways:
        ranks = next(group for group in groups if rank in group)
        model = synced(**options)
        reference = network()
        images = [torch.empty_like(mine()) for _ in range(4)]
        dist.all_gather(images, mine())
        reference(torch.cat([images[peer] for peer in ranks]))
        fsdp2(model, mesh)(mine())
        for name, layer in syncnorm.batch_norms(model).items():
            own = reference.get_submodule(name)
            torch.testing.assert_close(layer.running_var, own.running_var, **CLOSE)
    batches = [mine()]
    alone = syncnorm.recalibrate(copy.deepcopy(network()), batches, process_group=mesh["shard"])
    given = dist.new_subgroups(2)[0]
    same(alone, syncnorm.recalibrate(network(), batches, process_group=given))
    with pytest.raises(
        UserError, match=r"a mesh of 2 dimensions \('replicate', 'shard'\): choose .* mesh\['shard'\]"
    ):
        synced(process_group=mesh)
    with pytest.raises(UserError, match=r"group_size is 'machine': .* or 'node'"):
        synced(group_size="machine")


CHECKS = {
    2: (
        check_equal_to_ddp,
        check_a_trained_model_changes_layers,
        check_mixed_precision,
        check_recalibrate,
        check_freeze,
        check_refused,
    ),
    4: (check_equal_to_ddp, check_recalibrate, check_groups),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for check in CHECKS[dist.get_world_size()]:
        check()
    leave()
