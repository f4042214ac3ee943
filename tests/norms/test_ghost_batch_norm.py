"""GhostBatchNorm against R separate batch norms, one a device."""

import copy
import pickle
from typing import Literal

import pytest
import torch
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import GhostBatchNorm

C = 3


def batch(n: int, *spatial: int) -> Tensor:
    return torch.randn(n, C, *spatial, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("spatial", [(), (5,), (4, 3), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_each_rank_is_a_batch_norm_of_its_own(ranks: int, spatial: tuple[int, ...], momentum: float | None) -> None:
    x = batch(16, *spatial).requires_grad_()
    probe = torch.randn_like(x)
    ghost = GhostBatchNorm(C, momentum=momentum, virtual_ranks=ranks).double()
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[x.dim()]
    devices = [kind(C, momentum=momentum).double() for _ in range(ranks)]
    with torch.no_grad():
        for layer in (ghost, *devices):
            layer.weight.copy_(torch.tensor([0.5, -1.5, 2.0]))
    for _ in range(3):
        y = ghost(x)
        parts = [device(x[rank::ranks]) for rank, device in enumerate(devices)]
    expected = torch.stack(parts, 1).flatten(0, 1)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dx, dw = torch.autograd.grad((y * probe).sum(), (x, ghost.weight))
    dx_, *dws = torch.autograd.grad((expected * probe).sum(), (x, *[device.weight for device in devices]))
    torch.testing.assert_close(dx, dx_, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dw, sum(dws), rtol=1e-12, atol=1e-12)
    for name, value in devices[0].state_dict().items():
        torch.testing.assert_close(ghost.state_dict()[name], value)
    torch.testing.assert_close(ghost.eval()(x), devices[0].eval()(x))


def test_pooled_buffers_are_the_law_of_total_variance_over_ranks() -> None:
    x = batch(12, 4, 4)
    ghost = GhostBatchNorm(C, virtual_ranks=3, buffers="pooled").double()
    devices = [nn.BatchNorm2d(C).double() for _ in range(3)]
    for shift in range(3):
        ghost(x + shift)
        for rank, device in enumerate(devices):
            device(x[rank::3] + shift)
    means = torch.stack([device.running_mean for device in devices])
    variances = torch.stack([device.running_var for device in devices])
    torch.testing.assert_close(ghost.running_mean, means.mean(0))
    torch.testing.assert_close(ghost.running_var, variances.mean(0) + means.var(0, correction=0))
    assert ghost.running_var.gt(variances.mean(0)).all()


def test_one_virtual_rank_is_plain_batch_norm() -> None:
    x = batch(6, 3, 3)
    plain, ghost = nn.BatchNorm2d(C).double(), GhostBatchNorm(C, virtual_ranks=1).double()
    assert torch.equal(plain(x), ghost(x))
    assert plain.state_dict().keys() == ghost.state_dict().keys()


def test_contiguous_input_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = torch.nn.functional.batch_norm
    monkeypatch.setattr(torch.nn.functional, "batch_norm", lambda x, *rest: (seen.append(x), original(x, *rest))[1])
    x = batch(6, 3, 3)
    GhostBatchNorm(C, virtual_ranks=2).double()(x)
    assert seen[0].shape == (3, 2 * C, 3, 3)
    assert seen[0].data_ptr() == x.data_ptr()


def test_channels_last_gives_the_same_numbers() -> None:
    x = batch(8, 4, 4)
    a, b = (GhostBatchNorm(C, virtual_ranks=4).double() for _ in range(2))
    torch.testing.assert_close(a(x.contiguous(memory_format=torch.channels_last)), b(x), rtol=1e-12, atol=1e-12)


def test_a_loaded_or_copied_layer_goes_on_from_what_it_was_given() -> None:
    x = batch(4, 3, 3)
    plain = nn.BatchNorm2d(C).double()
    plain(x + 5)
    ghost = GhostBatchNorm(C, virtual_ranks=2, buffers="pooled").double()
    ghost.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ghost.rank_mean, plain.running_mean.expand(2, C))
    twin = copy.deepcopy(ghost)
    ghost(x)
    twin(x)
    torch.testing.assert_close(twin.running_var, ghost.running_var, rtol=0, atol=0)
    ghost.reset_running_stats()
    assert torch.equal(ghost.rank_var, torch.ones(2, C, dtype=torch.float64))


@pytest.mark.parametrize("buffers", ["rank0", "pooled"])
def test_a_layer_can_be_pickled(buffers: Literal["rank0", "pooled"]) -> None:
    ghost = GhostBatchNorm(C, virtual_ranks=2, buffers=buffers).double()
    ghost(batch(4, 3, 3))
    twin = pickle.loads(pickle.dumps(ghost))
    assert torch.equal(twin(batch(4, 3, 3)), ghost(batch(4, 3, 3)))
    assert torch.equal(twin.running_var, ghost.running_var)


def test_checkpointing_counts_a_batch_once() -> None:
    from torch.utils.checkpoint import checkpoint

    ghost, once = (GhostBatchNorm(C, virtual_ranks=2).double() for _ in range(2))
    x = batch(4, 3, 3).requires_grad_()
    checkpoint(ghost, x, use_reentrant=False).sum().backward()
    once(x)
    torch.testing.assert_close(ghost.running_mean, once.running_mean, rtol=0, atol=0)
    assert ghost.num_batches_tracked == 1


def test_stacked_layers_train_as_each_does() -> None:
    """torch.vmap over layers, with their parameters and statistics."""
    layers = [GhostBatchNorm(C, virtual_ranks=2).double() for _ in range(3)]
    x = torch.stack([batch(4, 3) + shift for shift in range(3)])
    states = [{name: value.clone() for name, value in layer.state_dict().items()} for layer in layers]
    stacked = {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def train(state: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layers[0], state, (x,))

    y = torch.vmap(train)(stacked, x)
    for i, layer in enumerate(layers):
        torch.testing.assert_close(y[i], layer(x[i]))
        torch.testing.assert_close(stacked["running_var"][i], layer.running_var)


def test_mistakes_get_a_sentence() -> None:
    layer = GhostBatchNorm(C, virtual_ranks=4)
    with pytest.raises(ValueError, match="6 samples for 4 virtual ranks"):
        layer(torch.randn(6, C, 2, 2))
    with pytest.raises(ValueError, match="one value per channel"):
        layer(torch.randn(4, C, 1, 1))
    with pytest.raises(ValueError, match=r"needs \(N, 3\)"):
        layer(torch.randn(4, C + 1, 2, 2))
    with pytest.raises(ValueError, match="at least 1"):
        GhostBatchNorm(C, virtual_ranks=0)
    with pytest.raises(ValueError, match="'rank0' or 'pooled'"):
        GhostBatchNorm(C, virtual_ranks=2, buffers="mean")


def test_virtual_ranks_within_real_ranks() -> None:
    """Two ranks with two virtual ranks each are four virtual ranks."""
    x = batch(8, 3, 3)
    y = torch.stack(ok(run_ranks(2, lambda rank: GhostBatchNorm(C, virtual_ranks=2).double()(x[rank::2]))), 1)
    torch.testing.assert_close(
        y.flatten(0, 1), GhostBatchNorm(C, virtual_ranks=4).double()(x), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("training", [True, False])
def test_channels_stay_where_they_are_in_memory(layout: torch.memory_format, training: bool) -> None:
    layer, x = GhostBatchNorm(3, virtual_ranks=2).train(training), torch.randn(4, 3, 5, 6)
    right, y = layer(x), layer(x.to(memory_format=layout))
    torch.testing.assert_close(y, right)
    assert y.is_contiguous(memory_format=layout)
    volume = torch.randn(4, 3, 2, 5, 6).to(memory_format=torch.channels_last_3d)
    assert layer(volume).is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.vmap(layer.eval(), randomness="different")(x[None].expand(2, -1, -1, -1, -1)).shape == (2, *x.shape)
