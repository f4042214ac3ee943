"""Back to torch's batch norm from synchronised layers by another hand, and a word where nothing is done."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from syncnorm import SyncBatchNorm, convert, fold, recalibrate, revert
from syncnorm.norms import GhostBatchNorm

SHAPES = {nn.BatchNorm1d: (5, 4, 3), nn.BatchNorm2d: (5, 4, 3, 3), nn.BatchNorm3d: (5, 4, 2, 3, 3)}
# Layers that take inputs of any dimensions.
ANY = {
    "torch's": nn.SyncBatchNorm,
    "ours": SyncBatchNorm,
    "ghosts": lambda channels: GhostBatchNorm(channels, virtual_ranks=1),
}


def trained(kind: str, x: Tensor) -> nn.Sequential:
    model = nn.Sequential(ANY[kind](4))
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in (*model.parameters(), model[0].running_mean, model[0].running_var):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("kind", ANY)
@pytest.mark.parametrize("right", [*SHAPES, "flat"])
def test_the_first_input_says_which_batch_norm_it_is(kind: str, right: type[nn.Module] | str) -> None:
    shape = (5, 4) if isinstance(right, str) else SHAPES[right]
    right = nn.BatchNorm1d if isinstance(right, str) else right
    x = torch.randn(shape)
    model = trained(kind, x)
    before, keys = model(x), list(model.state_dict())
    convert(model, "bn")
    unused = copy.deepcopy(model)
    for twin in (pickle.loads(pickle.dumps(model)), model):
        torch.testing.assert_close(twin(x), before, rtol=1e-6, atol=1e-6)
        assert type(twin[0]) is right
        assert list(twin.state_dict()) == keys
        with pytest.raises(ValueError, match="expected"):
            twin(torch.randn(2, 4, 1, 1, 1) if right is not nn.BatchNorm3d else torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"BatchNorm\(4\) got an input of shape \(4,\): it needs \(N, C\) and up to"):
        unused(torch.randn(4))
    recalibrate(unused, [x])
    assert type(unused[0]) is right
    assert type(revert(model)[0]) is type(ANY[kind](4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, "bn")
        assert type(convert(model, "sync_bn")[0]) is SyncBatchNorm


def test_the_first_input_may_be_that_of_compiled_code() -> None:
    x = torch.randn(SHAPES[nn.BatchNorm3d])
    model = convert(trained("torch's", x), "bn")
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), trained("torch's", x)(x))
    model(x)
    assert type(model[0]) is nn.BatchNorm3d


class Activated(nn.SyncBatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_what_it_does_besides_stays_with_it() -> None:
    model, x = nn.Sequential(nn.Conv3d(2, 4, 1), Activated(4)).eval(), torch.randn(3, 2, 2, 3, 3)
    before = model(x)
    convert(model, "bn")
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), before)
    assert torch.equal(model(x), before)
    assert isinstance(model[1], nn.BatchNorm3d)
    torch.testing.assert_close(pickle.loads(pickle.dumps(model))(x), before)
    torch.testing.assert_close(fold(model)(x), before)


@pytest.mark.parametrize("kind", ["torch's", "ours"])
def test_revert_says_what_it_leaves(kind: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), ANY[kind](4), *[ANY[kind](4) for _ in range(4)])
    with pytest.warns(UserWarning, match="'1', '2', '3' and 2 more: synchronised batch norm that sync"):
        revert(model)
    with pytest.warns(UserWarning, match=r"'1', '2': .*convert\(model, 'bn'\) makes it batch norm"):
        revert(nn.Sequential(convert(nn.BatchNorm2d(4), "sync_bn"), *[ANY[kind](4) for _ in range(2)]))
    with pytest.warns(UserWarning, match="the model has no layer from syncnorm.convert: it stays as it is"):
        revert(nn.Sequential(nn.BatchNorm2d(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(revert(convert(nn.Sequential(ANY[kind](4)), "gn"))[0]) is type(ANY[kind](4))


@pytest.mark.parametrize("how", ["fx", "jit"])
def test_a_trace_may_be_the_first_input(how: str) -> None:
    model, x = convert(nn.Sequential(nn.SyncBatchNorm(4)), "bn").eval(), torch.randn(5, 4, 3)
    traced = torch.fx.symbolic_trace(model) if how == "fx" else torch.jit.trace(model, x)
    assert torch.equal(traced(x), model(x))
    assert type(model[0]) is nn.BatchNorm1d
