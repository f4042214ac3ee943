"""What a batch norm does beside its norm is found out, or the layer is refused: nothing is changed by looking."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from fused_layers import LAYERS, X, out, trained
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, batch_norms, convert, fold, revert, tent
from syncnorm.errors import UserError


class PassedOn(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class InFloat32(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


@pytest.mark.parametrize("kind", [PassedOn, InFloat32])
def test_a_forward_that_adds_nothing_is_batch_norm(kind: type[nn.Module]) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 1), kind(4)), X.float()
    model(x)
    before = out(model.eval(), x)
    assert type(convert(model, "sync_bn")[1]) is SyncBatchNorm
    assert torch.equal(out(model, x), before)
    assert type(revert(model)[1]) is kind
    torch.testing.assert_close(out(fold(model), x), before, rtol=1e-5, atol=1e-5)


class Residual(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Before(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.relu())


class DropsByMode(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


class Ghost(nn.BatchNorm2d):
    """Batch norm in evaluation alone."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            torch.cat([super(Ghost, self).forward(part) for part in x.chunk(2)])
            if self.training
            else super().forward(x)
        )


class Faint(nn.BatchNorm2d):
    """Different by little."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * x


def patched(channels: int) -> nn.Module:
    layer = nn.BatchNorm2d(channels)
    forward = layer.forward
    layer.forward = lambda x: forward(x) * 3
    return layer


class AroundTheCall(nn.BatchNorm2d):
    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = super().__call__(x)
        return y.relu()


@pytest.mark.parametrize("build", [Residual, Before, DropsByMode, Ghost, Faint, AroundTheCall, patched])
def test_what_cannot_be_carried_is_refused(build: Callable[[int], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), build(4)).double()
    model(X)
    before, state = out(model.eval()), copy.deepcopy(model.state_dict())
    kind = type(build(4)).__name__
    said = rf"layer '1' is a {kind} with a forward of its own, which is not BatchNorm2d"
    for change in (lambda: convert(model, "sync_bn"), lambda: tent(model), lambda: convert(model, "none")):
        with pytest.raises(UserError, match=said):
            change()
    with pytest.warns(UserWarning, match=f"it is a {kind} with a forward of its own"):
        fold(model)
    assert torch.equal(out(model), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_convolution_with_a_forward_of_its_own_is_refused_by_norms_of_weights() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    model = nn.Sequential(Padded(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(UserError, match=r"layer '0' is a Padded with a forward .* norm 'ws' would leave out"):
        convert(model, "ws")
    assert type(convert(model, "sync_bn")[0]) is Padded


def test_finding_out_draws_no_random_numbers_and_changes_nothing() -> None:
    model = trained("children").train()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    convert(model, "sync_bn")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    on_meta = convert(trained("children").to("meta"), "sync_bn")
    assert {p.device.type for p in revert(on_meta).parameters()} == {"meta"}


@pytest.mark.parametrize("kind", ["synchronised", "ours", "children"])
def test_finding_out_waits_for_no_rank(kind: str) -> None:
    def work(rank: int) -> list[str]:
        model = trained_once[rank]
        if rank == 0:  # alone
            convert(revert(convert(model, "gn")), "sync_bn")
        return [type(layer).__name__ for layer in batch_norms(model).values()]

    trained_once = [trained(kind) for _ in range(2)]
    own = type(LAYERS[kind](4)).__name__
    assert ok(run_ranks(2, work)) == [["FusedSyncBatchNorm"] * 2, [own] * 2]


class DropsWhenSynchronised(nn.SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.5, self.training)


def test_what_only_several_ranks_could_tell_is_refused() -> None:
    def work(rank: int) -> None:
        with pytest.raises(UserError, match="layer '0' is a DropsWhenSynchronised with a forward of its own"):
            convert(nn.Sequential(DropsWhenSynchronised(4)), "sync_bn")

    ok(run_ranks(2, work))
