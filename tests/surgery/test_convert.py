import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import register_parametrization

from syncnorm import SyncBatchNorm, batch_norms, convert, domain, norm_names, revert
from syncnorm.errors import UserError
from syncnorm.norms import ScaledWSConv2d, scaled_weight_standardization

OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}


class MyNorm(nn.BatchNorm2d):
    """A user's own class, with something of its own to remember."""

    note = "mine"


class Net(nn.Module):
    """Names that say nothing of batch norm, a shared layer, all dimensions, an odd eps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), MyNorm(8, eps=1e-3, momentum=0.3), nn.ReLU())
        self.shared = nn.BatchNorm2d(8, affine=False)
        self.blocks = nn.ModuleDict({"a": self.shared, "b": nn.Sequential(nn.Conv2d(8, 8, 1, groups=8), self.shared)})
        self.head = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks["b"](self.blocks["a"](self.stem(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def trained() -> Net:
    torch.manual_seed(0)
    net = Net().double()
    for _ in range(3):
        net(torch.randn(6, 3, 8, 8, dtype=torch.float64) * 2 + 1)
    with torch.no_grad():
        net.stem[1].weight.uniform_(0.5, 2)
        net.stem[1].bias.uniform_(-1, 1)
    return net.eval()


X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SPATIAL_ONLY = {"in", "frn", "evonorm_b0", "iabn"}
BATCH_NORMS = ("bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "hybrid_bn", "online_bn", "brn", "cbn")
BATCH_NORMS += ("diminishing_bn", "full_norm", "mixstyle")


@pytest.fixture(autouse=True)
def _in_a_domain() -> Iterator[None]:
    with domain(1):
        yield


@pytest.mark.parametrize("name", norm_names())
def test_there_and_back_gives_the_very_outputs(trained: Net, name: str) -> None:
    before = trained(X)
    types = {where: type(layer) for where, layer in trained.named_modules()}
    state = copy.deepcopy(trained.state_dict())
    converted = convert(trained, name, **OPTIONS.get(name, {}))
    assert converted is trained
    if name in BATCH_NORMS:
        torch.testing.assert_close(converted(X), before, rtol=1e-12, atol=1e-12)
        assert list(batch_norms(converted)) == ["stem.1", "shared", "head.1"]
        added = {"stem.1.mix", "shared.mix", "blocks.a.mix", "blocks.b.1.mix", "head.1.mix"}
        assert converted.state_dict().keys() - state.keys() == (added if name == "hybrid_bn" else set())
        assert converted.state_dict().keys() >= state.keys()
    elif name == "domain_bn":  # not one running_mean, but each domain starts with what there was
        torch.testing.assert_close(converted(X), before, rtol=1e-12, atol=1e-12)
        assert not batch_norms(converted)
    elif name not in SPATIAL_ONLY:
        assert not torch.allclose(converted(X), before)
        assert bool(batch_norms(converted)) == (name in ("prediction_bn", "alpha_bn", "eval_norm", "example_bn"))
    reverted = revert(converted)
    assert torch.equal(reverted(X), before)
    assert {where: type(layer) for where, layer in reverted.named_modules()} == types
    assert reverted.stem[1].note == "mine"
    assert reverted.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", norm_names())
def test_what_was_learnt_in_between_is_kept(trained: Net, name: str) -> None:
    parameters = list(trained.parameters())
    convert(trained, name, **OPTIONS.get(name, {})).train()
    learnt = [p for p in trained.parameters() if p.shape == (8,)]
    with torch.no_grad():
        for p in learnt:
            p.add_(1.0)
    revert(trained)
    assert [id(p) for p in trained.parameters()] == [id(p) for p in parameters]
    assert trained.training
    assert trained.stem[1].training


@pytest.mark.parametrize("name", norm_names())
def test_a_batch_norm_without_bias_stays_without(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)).double()
    model[1].bias = None
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    state, before = list(model.state_dict()), model.eval()(x)
    convert(model, name, **OPTIONS.get(name, {}))
    assert "1.bias" not in dict(model.named_parameters())
    if name in BATCH_NORMS:
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert model.train()(x).shape == before.shape
    assert list(revert(model).state_dict()) == state


def test_statistics_follow_through_layers_that_keep_them(trained: Net) -> None:
    convert(trained, "sync_bn").train()
    trained(X)
    seen = trained.stem[1].running_mean.clone()
    revert(trained)
    assert torch.equal(trained.stem[1].running_mean, seen)


@pytest.mark.parametrize("name", norm_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_moved_in_between_comes_back_moved(trained: Net, name: str, dtype: torch.dtype) -> None:
    moved = copy.deepcopy(trained).to(dtype)
    convert(trained, name, **OPTIONS.get(name, {})).to(dtype)
    found = revert(trained)
    assert torch.equal(found(X.to(dtype)), moved(X.to(dtype)))
    for key, value in moved.state_dict().items():
        assert found.state_dict()[key].dtype == value.dtype
        assert torch.equal(found.state_dict()[key], value)


@pytest.mark.parametrize("name", norm_names())
def test_a_layer_of_another_type_than_its_model_stays_so(name: str) -> None:
    """Batch norm in float32 within a bfloat16 model, the usual mixed precision."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1).bfloat16(), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)).eval()
    before = model(X.bfloat16())
    assert torch.equal(revert(convert(model, name, **OPTIONS.get(name, {})))(X.bfloat16()), before)
    assert model[1].weight.dtype == model[2].running_var.dtype == torch.float32


@pytest.mark.parametrize("name", ["frozen_bn", "reference_bn", "hybrid_bn"])
def test_frozen_statistics_are_the_very_tensors(trained: Net, name: str) -> None:
    kept = {key: id(value) for key, value in trained.state_dict(keep_vars=True).items()}
    values = {key: value.clone() for key, value in trained.state_dict().items()}
    convert(trained, name).train()
    trained(X).sum().backward()
    found = trained.state_dict(keep_vars=True)
    assert {key: id(found[key]) for key in kept} == kept
    assert all(torch.equal(found[key], value) for key, value in values.items())
    plain = Net().double()
    plain.load_state_dict(found, strict=name != "hybrid_bn")
    trained.load_state_dict(plain.state_dict(), strict=name != "hybrid_bn")
    with pytest.raises(UserError, match="normalises with running statistics, so it cannot be without them"):
        convert(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), name)


def test_what_the_new_layer_adds_has_the_type_of_the_old(trained: Net) -> None:
    convert(trained, "ghost_bn", virtual_ranks=2, buffers="pooled").train()
    trained(X)
    assert trained.stem[1].rank_mean.dtype == torch.float64
    convert(trained, "gn", affine=True)
    trained(X)
    assert trained.shared.weight.dtype == torch.float64


@pytest.mark.parametrize("how", ["parametrised", "pruned"])
def test_a_computed_weight_is_refused(trained: Net, how: str) -> None:
    def compute_weight(layer: nn.Module) -> None:
        if how == "pruned":
            prune.random_unstructured(layer, "weight", 0.5)
        else:
            register_parametrization(layer, "weight", nn.ReLU())

    twin = copy.deepcopy(trained)
    compute_weight(twin.stem[1])
    before = twin(X)
    with pytest.raises(UserError, match=r"layer 'stem\.1' computes its weight from something else"):
        convert(twin, "sync_bn")
    assert torch.equal(twin(X), before)
    compute_weight(convert(trained, "sync_bn").stem[1])
    with pytest.raises(UserError, match=r"layer 'stem\.1' computes its weight from something else"):
        revert(trained)


def test_a_chain_of_norms_reverts_to_the_first(trained: Net) -> None:
    before = trained(X)
    for name in ("gn", "sync_bn", "none", "ln", "bn"):
        convert(trained, name)
    assert type(trained.stem[1]) is nn.BatchNorm2d
    assert type(revert(trained).stem[1]) is MyNorm
    assert torch.equal(trained(X), before)
    assert revert(trained) is trained


def test_options_and_settings_are_carried(trained: Net) -> None:
    convert(trained, "sync_bn", skip_nonfinite=True, momentum=0.5)
    layer = trained.stem[1]
    assert (layer.eps, layer.momentum, layer.skip_nonfinite) == (1e-3, 0.5, True)
    assert trained.shared.weight is None


def test_shared_layers_stay_shared(trained: Net) -> None:
    convert(trained, "sync_bn")
    assert trained.shared is trained.blocks["a"]
    assert trained.shared is trained.blocks["b"][1]
    assert revert(trained).shared is trained.blocks["b"][1]


def test_copies_keep_their_way_back(trained: Net) -> None:
    twin = copy.deepcopy(convert(trained, "gn"))
    assert twin.stem[1].weight is not trained.stem[1].weight
    assert type(revert(twin).stem[1]) is MyNorm
    assert type(trained.stem[1]).__name__ == "GroupNorm"


def test_batch_norms_are_found_by_type(trained: Net) -> None:
    assert list(batch_norms(trained)) == ["stem.1", "shared", "head.1"]
    assert list(batch_norms(convert(trained, "sync_bn"))) == ["stem.1", "shared", "head.1"]


def test_a_model_that_is_a_batch_norm() -> None:
    layer = nn.BatchNorm2d(3)
    converted = convert(layer, "sync_bn")
    assert type(converted) is SyncBatchNorm
    assert revert(converted) is layer


def test_torchs_own_synchronised_layer_is_converted() -> None:
    assert type(convert(nn.Sequential(nn.SyncBatchNorm(3)), "sync_bn")[0]) is SyncBatchNorm


def test_mistakes_leave_the_model_untouched(trained: Net) -> None:
    before = trained(X)
    for name, options in (("gnn", {}), ("gn", {"groups": 3}), ("sync_bn", {"group": 1})):
        with pytest.raises(UserError):
            convert(trained, name, **options)
        assert torch.equal(trained(X), before)
        assert type(trained.stem[1]) is MyNorm
    with pytest.raises(UserError, match="layer '0' does not know its channels yet"):
        convert(nn.Sequential(nn.LazyBatchNorm2d()), "gn")


class TestScaledWeightStandardisation:
    """What "scaled_ws" does beside taking the batch norms out."""

    def test_every_convolution_is_standardised_and_comes_back(self, trained: Net) -> None:
        first, depthwise, parameters = trained.stem[0], trained.blocks["b"][0], list(trained.parameters())
        random = torch.get_rng_state()
        convert(trained, "scaled_ws")
        assert torch.equal(torch.get_rng_state(), random)
        assert isinstance(trained.stem[0], ScaledWSConv2d)
        assert trained.stem[0].weight is first.weight
        assert trained.blocks["b"][0] is depthwise  # one weight a unit
        assert all(isinstance(layer, nn.Identity) for layer in (trained.stem[1], trained.shared, trained.head[1]))
        revert(trained)
        assert trained.stem[0] is first
        assert [id(p) for p in trained.parameters()] == [id(p) for p in parameters]

    def test_the_raw_weight_is_kept_as_trained(self, trained: Net) -> None:
        convert(trained, "scaled_ws").train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        trained(X).square().sum().backward()
        optimizer.step()
        weight = trained.stem[0].weight.clone()
        assert not torch.equal(trained.stem[0].gain, torch.ones_like(trained.stem[0].gain))
        revert(trained)
        assert torch.equal(trained.stem[0].weight, weight)
        assert "stem.0.gain" not in trained.state_dict()

    @pytest.mark.parametrize("name", [name for name in norm_names() if name != "scaled_ws"])
    def test_another_norm_takes_it_out(self, trained: Net, name: str) -> None:
        torch.manual_seed(0)  # spectral norm starts from random vectors
        twin = convert(copy.deepcopy(trained), name, **OPTIONS.get(name, {})).eval()
        torch.manual_seed(0)
        convert(convert(trained, "scaled_ws"), name, **OPTIONS.get(name, {})).eval()
        assert type(trained.stem[0]).__name__ == type(twin.stem[0]).__name__ != "ScaledWSConv2d"
        if name not in SPATIAL_ONLY:
            torch.testing.assert_close(trained(X), twin(X), rtol=0, atol=0)
        assert trained.state_dict().keys() == twin.state_dict().keys()

    def test_a_copy_comes_back_by_itself(self, trained: Net) -> None:
        before = trained(X)
        standardised = convert(trained, "scaled_ws")(X)
        twin = copy.deepcopy(trained)
        assert torch.equal(revert(trained)(X), before)
        assert torch.equal(twin(X), standardised)
        assert torch.equal(revert(twin)(X), before)

    def test_again_changes_nothing_where_nothing_was_learnt(self, trained: Net) -> None:
        once = convert(trained, "scaled_ws")(X)
        assert torch.equal(convert(trained, "scaled_ws")(X), once)
        assert type(revert(trained).stem[0]) is nn.Conv2d

    @pytest.mark.parametrize("padding", [1, "same"])
    def test_geometry_is_that_of_the_convolution(self, padding: Any) -> None:
        torch.manual_seed(0)
        plain = nn.Conv2d(4, 6, (3, 5), padding=padding, dilation=2, groups=2, bias=False, padding_mode="reflect")
        x = torch.randn(2, 4, 12, 12)
        expected = copy.deepcopy(plain)
        model = convert(nn.Sequential(plain, nn.ConvTranspose2d(6, 6, 3)), "scaled_ws")
        with torch.no_grad():
            expected.weight.copy_(scaled_weight_standardization(plain.weight, torch.ones(6)))
        assert torch.equal(model[0](x), expected(x))
        assert type(model[1]) is nn.ConvTranspose2d

    def test_mistakes_leave_the_model_untouched(self, trained: Net) -> None:
        with pytest.raises(UserError, match="normalises the weights of convolutions, and the model has none"):
            convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "scaled_ws")
        with pytest.raises(UserError, match="unknown option 'eps'"):
            convert(trained, "scaled_ws", eps=1.0)
        prune.random_unstructured(trained.blocks["b"][0], "weight", 0.5)
        prune.random_unstructured(trained.stem[0], "weight", 0.5)
        before = trained(X)
        with pytest.raises(UserError, match=r"layer 'stem\.0' computes its weight from something else"):
            convert(trained, "scaled_ws")
        assert torch.equal(trained(X), before)
