"""A batch norm's state is what it holds at the moment: flags, momentum and buffers, however they were set."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from syncnorm import GhostBatchNorm, SyncBatchNorm, domain, make_norm, norm_names
from syncnorm.norms import NORMS

C = 3
OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "eval_norm": {"batch": 2}}
NAMES = [name for name in norm_names() if name != "bn" and isinstance(NORMS[name].layer, type)]
NAMES = [name for name in NAMES if issubclass(NORMS[name].layer, _BatchNorm)]
FROZEN = ["frozen_bn", "reference_bn", "hybrid_bn"]


def batch(seed: int = 0, n: int = 8) -> Tensor:
    return torch.randn(n, C, 4, 4, generator=torch.Generator().manual_seed(seed)).double() * 2 + 1


def made(name: str, **options: Any) -> nn.Module:
    layer = make_norm(name, C, **OPTIONS.get(name, {}), **options).double()
    layer(batch(1))
    return layer


def state(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.named_buffers()}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_frozen_by_its_flag_keeps_every_buffer_and_moves_again_afterwards(name: str) -> None:
    layer = made(name)
    layer.track_running_stats = False
    before = state(layer)
    assert layer(batch()).isfinite().all()
    assert all(torch.equal(value, before[key]) for key, value in layer.named_buffers())
    evaluated = layer.eval()(batch())
    layer.track_running_stats = True
    assert torch.equal(layer(batch()), evaluated)
    layer.train()(batch())
    if name not in FROZEN:
        assert not torch.equal(layer.running_mean, before["running_mean"])
        assert layer.num_batches_tracked == before["num_batches_tracked"] + 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.0, 0.5, None])
def test_momentum_is_the_one_of_the_moment(name: str, momentum: float | None) -> None:
    layer = made(name)
    layer.reset_running_stats()
    layer.momentum = momentum
    for seed in range(3):
        layer(batch(seed))
    means = torch.stack([batch(seed)[:: 2 if name == "ghost_bn" else 1].mean((0, 2, 3)) for seed in range(3)])
    weights = {0.0: [0.0, 0.0, 0.0], 0.5: [0.125, 0.25, 0.5], None: [1 / 3, 1 / 3, 1 / 3]}[momentum]
    expected = (torch.tensor(weights).double().unsqueeze(1) * means).sum(0)
    if name in FROZEN and momentum is not None:
        expected = torch.zeros(C).double()
    if name != "diminishing_bn" or momentum is None:  # its schedule says how much
        torch.testing.assert_close(layer.running_mean, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("missing", [["running_mean", "running_var"], ["running_mean"], ["running_var"]], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_without_statistics_it_works_by_the_batch_or_says_what_it_needs(
    name: str, missing: list[str], training: bool
) -> None:
    layer = made(name).train(training)
    for key in missing:
        setattr(layer, key, None)
    by_batch = name in ("sync_bn", "ghost_bn", "mixstyle", "cbn")
    if len(missing) == 1 or not by_batch:
        sentence = None
        try:
            layer(batch())
        except ValueError as error:
            sentence = str(error)
        assert sentence is None or f"{type(layer).__name__}({C}) has no {missing[0]} (it is None), and " in sentence
    else:
        assert layer(batch()).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_without_a_counter_it_works(name: str) -> None:
    for momentum in (0.1, None):
        layer = made(name)
        layer.num_batches_tracked, layer.momentum = None, momentum
        before = state(layer)
        assert layer(batch()).isfinite().all()
        if momentum is None and name != "iabn":  # as in torch, nothing says how many there were
            assert torch.equal(layer.running_mean, before["running_mean"])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_weight_averaging_leaves_no_layer_without_statistics(name: str, momentum: float | None) -> None:
    """`update_bn` resets every batch norm by type, and refills it: with the mean of the batches', or not at all."""
    batches = [batch(seed) for seed in range(4)]
    layer = made(name, momentum=momentum)
    before = copy.deepcopy(layer)
    model = nn.Sequential(layer)
    update_bn(batches, model)
    assert layer.momentum == momentum
    kept = name in FROZEN and momentum is None
    plain = nn.BatchNorm2d(C).double()
    update_bn([x[:: 2 if name == "ghost_bn" else 1] for x in batches], nn.Sequential(plain))
    if name in ("brn", "diminishing_bn", "full_norm"):  # which average something else than unbiased variances
        torch.testing.assert_close(layer.running_var, plain.running_var, rtol=0.1, atol=0)
    elif not (name == "diminishing_bn" and momentum is None):
        torch.testing.assert_close(layer.running_var, (before if kept else plain).running_var)
    torch.testing.assert_close(layer.running_mean, (before if kept else plain).running_mean)


@pytest.mark.parametrize("name", FROZEN)
def test_a_refill_by_other_means_works_too(name: str) -> None:
    """Some tools put new tensors in the place of the statistics, and set momentum to None."""
    layer = made(name)
    layer.running_mean, layer.running_var = torch.zeros(C).double(), torch.ones(C).double()
    layer.momentum = None
    layer.num_batches_tracked *= 0
    for seed in range(3):
        layer(batch(seed))
    layer.momentum = 0.1
    filled = state(layer)
    expected = torch.stack([batch(seed).mean((0, 2, 3)) for seed in range(3)]).mean(0)
    torch.testing.assert_close(layer.running_mean, expected)
    layer(batch(5))
    assert torch.equal(layer.running_mean, filled["running_mean"])


@pytest.mark.parametrize("name", [name for name in NAMES if NORMS[name].layer.needs_statistics])
def test_a_layer_that_needs_statistics_is_not_built_without(name: str) -> None:
    with pytest.raises(ValueError, match=r"running (statistics|moments).*: write track_running_stats=True"):
        NORMS[name].layer(C, track_running_stats=False, **OPTIONS.get(name, {}))


def test_pooled_ranks_start_from_statistics_that_were_put_in() -> None:
    layer = GhostBatchNorm(C, virtual_ranks=2, buffers="pooled").double()
    layer.track_running_stats = False
    layer(batch())
    assert torch.equal(layer.rank_mean, torch.zeros(2, C).double())
    layer.track_running_stats = True
    layer(batch())
    torch.testing.assert_close(layer.rank_mean, 0.1 * torch.stack([batch()[r::2].mean((0, 2, 3)) for r in range(2)]))
    layer.to(torch.float32)
    assert layer.rank_mean.dtype == torch.float32


def test_ghosts_keep_the_layout() -> None:
    x = batch().contiguous(memory_format=torch.channels_last)
    for ranks in (1, 2):
        y = GhostBatchNorm(C, virtual_ranks=ranks).double()(x)
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_batches_that_are_kept_out_do_not_move_a_layer_of_one_rank() -> None:
    guarded, plain = SyncBatchNorm(C, skip_nonfinite=True).double(), nn.BatchNorm2d(C).double()
    for seed in range(3):
        x = batch(seed).requires_grad_()
        slopes = [torch.autograd.grad(layer(x).pow(3).sum(), x)[0] for layer in (guarded, plain)]
        torch.testing.assert_close(*slopes)
        guarded(torch.full((4, C, 2, 2), torch.inf).double())
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(guarded.state_dict()[key], value)


@pytest.mark.parametrize("missing", ["num_batches_tracked", "running_var"])
def test_evonorm_b0_works_without_a_buffer(missing: str) -> None:
    layer, whole = make_norm("evonorm_b0", C).double(), make_norm("evonorm_b0", C).double()
    setattr(layer, missing, None)
    torch.testing.assert_close(layer(batch()), whole(batch()))
    if missing == "running_var":  # as torch's batch norm, by the batch
        torch.testing.assert_close(layer.eval()(batch()), whole(batch()))
    else:
        torch.testing.assert_close(layer.running_var, whole.running_var)


@pytest.mark.parametrize(("name", "kept"), [("domain_bn", ""), ("evonorm_b0", ""), ("mabn", "running_square")])
def test_other_layers_with_running_statistics_have_the_flag_too(name: str, kept: str) -> None:
    layer = make_norm(name, C, **({"domains": 1} if name == "domain_bn" else {})).double()
    with domain(0):
        layer(batch())
        layer.track_running_stats = False
        before = state(layer)
        layer(batch(2))
    assert all(torch.equal(value, before[key]) for key, value in layer.named_buffers() if kept in key)
