"""How a mask travels: through resolutions, contexts, recomputation, compilation; what is said of a wrong one."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import syncnorm
from syncnorm import DomainBatchNorm, GhostBatchNorm, SyncBatchNorm, domain, keep_mask, make_norm, mask

C = 4
CLOSE: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-12}
BATCH_NORMS: dict[str, Callable[..., nn.Module]] = {
    "torch": lambda: nn.BatchNorm2d(C),
    "sync": lambda: SyncBatchNorm(C),
    "ghost": lambda: GhostBatchNorm(C, virtual_ranks=1),
    "pooled": lambda: GhostBatchNorm(C, virtual_ranks=2, buffers="pooled"),
}


def sample(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def positions(*shape: int, seed: int = 2) -> Tensor:
    """Return a mask (N, ...) for an input (N, C, ...), with two valid positions in each sample."""
    valid = torch.rand(shape[0], *shape[2:], generator=torch.Generator().manual_seed(seed)) < 0.6
    valid.view(len(valid), -1)[:, :2] = True
    return valid


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "strides": lambda: nn.Sequential(
        nn.Conv2d(2, C, 3, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        nn.Conv2d(C, C, 3, stride=2, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(C, C, 1),
        nn.BatchNorm2d(C),
    ),
    "pooled": lambda: nn.Sequential(
        nn.Conv2d(2, C, 3, padding=1),
        nn.BatchNorm2d(C),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(C, C, 1),
        nn.BatchNorm2d(C),
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", ["gn", "ln", "in"])
def test_a_padded_image_is_the_image_alone(network: str, name: str) -> None:
    torch.manual_seed(0)
    model = syncnorm.convert(NETWORKS[network](), name, **({"groups": 2} if name == "gn" else {})).double()
    images = [sample(2, *size) for size in ((8, 12), (12, 4), (6, 8))]
    x, valid = torch.zeros(3, 2, 12, 12, dtype=torch.float64), torch.zeros(3, 12, 12, dtype=torch.bool)
    for i, image in enumerate(images):
        height, width = image.shape[1:]
        x[i, :, :height, :width], valid[i, :height, :width] = image, True
    with mask(valid):
        y = model(x)
    for i, image in enumerate(images):
        single = model(image[None])[0]
        torch.testing.assert_close(y[i, :, : single.shape[1], : single.shape[2]], single, **CLOSE)
    assert y[:, :, -1, -1].eq(0).all()


FOLLOWS = [
    ([1, 0, 0, 0, 1, 1], 6, [1, 0, 0, 0, 1, 1]),
    ([1, 0, 0, 0, 1, 1], 3, [1, 0, 1]),
    ([1, 0, 0, 0, 1, 1], 2, [1, 1]),
    ([0, 0, 0, 0, 0, 1], 1, [1]),
    ([1, 0, 0], 6, [1, 1, 0, 0, 0, 0]),
    ([1, 0, 0, 0, 0, 0, 1], 4, [1, 0, 0, 1]),  # a padded stride of 2
    ([1, 0, 0, 0, 0, 0, 1], 3, [1, 0, 0]),  # a pooling of 2
    ([1] + [0] * 8 + [1], 3, [1, 0, 1]),  # two padded strides of 2
]


@pytest.mark.parametrize(("given", "size", "expected"), FOLLOWS, ids=str)
def test_the_mask_follows_the_resolution(given: list[int], size: int, expected: list[int]) -> None:
    """In one dimension, and in the second of two, for every form of a mask."""
    m, layer = torch.tensor([given] * 2, dtype=torch.bool), SyncBatchNorm(C).eval()
    with mask(m):
        line = layer(torch.ones(2, C, size))
    assert line.ne(0).int()[0, 0].tolist() == expected
    for plane in (m.unsqueeze(1), m.unsqueeze(1).expand(-1, 4, -1)[:, None]):
        with mask(plane):
            y = layer(torch.ones(2, C, 4, size))
        assert y.ne(0).int()[1, 2, 3].tolist() == expected


def test_samples_count_and_pooled_layers_follow() -> None:
    layer, x = SyncBatchNorm(C).eval(), torch.ones(3, C, 2, 2)
    for m in (torch.tensor([True, False, True]), torch.tensor([[[True, False]], [[False, False]], [[False, True]]])):
        with mask(m):
            assert layer(x[:, :, 0, 0]).ne(0)[:, 0].tolist() == [True, False, True]
    with mask(torch.tensor([True, False, True])):
        assert layer(x).ne(0).flatten(1).all(1).tolist() == [True, False, True]


def test_masks_of_several_sizes() -> None:
    layer, large, small = SyncBatchNorm(C).eval(), torch.ones(2, 9, 9).bool(), torch.eye(4).bool().expand(2, 4, 4)
    with mask(large, small):
        assert torch.equal(layer(torch.ones(2, C, 4, 4)).ne(0)[:, 0], small)
        assert layer(torch.ones(2, C, 9, 9)).ne(0).all()
    half = torch.zeros(2, 4, 4).bool()
    with mask(torch.ones(2, 8, 8).bool(), half):  # the mask of the size itself comes before one that is pooled
        assert layer(torch.ones(2, C, 4, 4)).eq(0).all()


@pytest.mark.parametrize(
    ("m", "x"),
    [
        (torch.ones(2, 9, 9), torch.ones(2, C, 6, 6)),
        (torch.ones(2, 8, 8), torch.ones(2, C, 3, 3)),  # 3 is no 8 / s
        (torch.ones(2, 5), torch.ones(2, C, 5, 5)),
        (torch.ones(3, 5, 5), torch.ones(2, C, 5, 5)),
        (torch.ones(2, C, 5, 5), torch.ones(2, C, 5, 5)),
        (torch.ones(2, 4), torch.ones(2, C, 7)),
    ],
    ids=lambda t: str(tuple(t.shape)),
)
@pytest.mark.parametrize("name", ["bn", "sync_bn", "gn"])
def test_a_mask_that_does_not_fit_gets_a_sentence(name: str, m: Tensor, x: Tensor) -> None:
    layer = make_norm(name, C, ndim=x.dim() - 2, **({"groups": 2} if name == "gn" else {}))
    with mask(m.bool()), pytest.raises(ValueError, match=r"syncnorm\.mask of shape .* add a mask of its size"):
        layer(x)


@pytest.mark.parametrize("wrong", [torch.ones(2, 3), torch.ones(2, 3).int(), [True], torch.tensor(True)], ids=repr)
def test_a_mask_is_a_bool_tensor(wrong: Any) -> None:
    with pytest.raises(syncnorm.errors.UserError, match="give a bool tensor"), mask(wrong):
        pass


REFUSE = sorted(
    set(syncnorm.norm_names())
    - {"bn", "sync_bn", "ghost_bn", "frozen_bn", "reference_bn", "domain_bn", "gn", "ln", "in", "ws"}
    - {"rms", "frn", "scaled_ws", "weight_norm", "spectral_norm", "none"}
)


@pytest.mark.parametrize("name", REFUSE)
@pytest.mark.parametrize("training", [True, False])
def test_a_norm_that_takes_no_mask_says_so(name: str, training: bool) -> None:
    layer = make_norm(name, C, **({"batch": 2} if name == "eval_norm" else {})).train(training)
    with mask(torch.ones(6, 4, 3).bool()):
        with pytest.raises(ValueError, match=rf"^{type(layer).__name__}\({C}\) takes no syncnorm\.mask"):
            layer(torch.randn(6, C, 4, 3))
        with mask(None):
            layer(torch.randn(6, C, 4, 3))


def test_a_formula_of_ones_own_takes_no_mask_by_inheritance() -> None:
    class Mine(SyncBatchNorm):
        def normalised(self, x: Tensor) -> Tensor:
            return x

    with mask(torch.ones(6, 3).bool()), pytest.raises(ValueError, match="Mine"):
        Mine(C)(torch.randn(6, C, 3))


def test_pytorchs_other_norms() -> None:
    x = torch.randn(6, 5, C)
    with mask(torch.ones(6, 5).bool()):
        assert torch.equal(nn.LayerNorm(C)(x), F.layer_norm(x, (C,)))  # each position by itself
        with pytest.raises(ValueError, match=r"layer norm over \(5, 4\) takes no syncnorm.mask"):
            nn.LayerNorm((5, C))(x)
        with pytest.raises(ValueError, match="instance norm of 5 channels with running statistics"):
            nn.InstanceNorm1d(5, track_running_stats=True)(x)
        with pytest.raises(ValueError, match=r"torch\.native_batch_norm takes no"):
            torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_where_nothing_counts_nothing_moves(kind: str) -> None:
    layer = BATCH_NORMS[kind]().double()
    before = copy.deepcopy(layer.state_dict())
    x = sample(6, C, 4, 3).requires_grad_()
    with mask(torch.zeros(6, 4, 3).bool()):
        y = layer(x)
    y.square().sum().backward()
    assert not any(value.ne(0).any() for value in (y, x.grad, layer.weight.grad, layer.bias.grad))
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]) or (kind == "torch" and name == "num_batches_tracked")


@pytest.mark.parametrize(
    "layer", [*(make() for make in BATCH_NORMS.values()), make_norm("in", C), nn.InstanceNorm2d(C)]
)
def test_one_valid_value_gets_a_sentence(layer: nn.Module) -> None:
    m = torch.zeros(6, 4, 3).bool()
    m[2, 1, 1] = True
    with mask(m), pytest.raises(ValueError, match=r"one value per channel where syncnorm\.mask is true"):
        layer(torch.randn(6, C, 4, 3))


def test_one_valid_value_of_a_virtual_rank_or_domain_gets_a_sentence() -> None:
    m = torch.ones(4, 3).bool()
    m[1::2] = False
    m[3, 0] = True
    with mask(m), pytest.raises(ValueError, match="one value per channel"):
        GhostBatchNorm(C, virtual_ranks=2)(torch.randn(4, C, 3))
    with mask(m), domain(torch.tensor([0, 1, 0, 1])), pytest.raises(ValueError, match="domain 1"):
        DomainBatchNorm(C, 2)(torch.randn(4, C, 3))


@pytest.mark.parametrize("first", [True, False])
def test_what_goes_wrong_on_one_rank_is_said_on_all(first: bool) -> None:
    def wrong(rank: int) -> None:
        layer = SyncBatchNorm(C)
        if not first:
            layer(torch.randn(4, C, 6))
        with mask(torch.ones(4, 5 if rank else 6).bool()):
            layer(torch.randn(4, C, 6))

    said = run_ranks(2, wrong)
    assert all(isinstance(error, ValueError) for error in said)
    assert "syncnorm.mask of shape (4, 5)" in str(said[1])

    def one(rank: int) -> None:
        m = torch.zeros(4, 6).bool()
        m[0, 0] = rank == 1
        with mask(m):
            SyncBatchNorm(C)(torch.randn(4, C, 6))

    assert all("one value per channel on all ranks together" in str(error) for error in run_ranks(2, one))


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_a_checkpointed_forward_is_recomputed_with_its_mask(kind: str) -> None:
    torch.manual_seed(0)
    block = nn.Sequential(BATCH_NORMS[kind](), nn.Sigmoid()).double()
    other, x, valid = copy.deepcopy(block), sample(6, C, 4, 3).requires_grad_(), positions(6, C, 4, 3)
    with mask(valid):
        y = checkpoint(block, x, use_reentrant=False, context_fn=keep_mask)
        z = other(x)
        (expected,) = torch.autograd.grad(z.square().sum(), x)
    with mask(~valid):  # of the next batch, say
        for again in (True, False):
            (dx,) = torch.autograd.grad(y.square().sum(), x, retain_graph=again)
            torch.testing.assert_close(dx, expected, **CLOSE)
    if kind != "torch":  # which counts each recomputation, with a mask or without
        assert block[0].num_batches_tracked == 1
        torch.testing.assert_close(block[0].running_var, other[0].running_var, **CLOSE)


def test_a_recomputation_keeps_mask_and_domain() -> None:
    block = nn.Sequential(DomainBatchNorm(C, 2), nn.Sigmoid()).double()
    x, valid, ids = sample(6, C, 5).requires_grad_(), positions(6, C, 5), torch.tensor([0, 1, 0, 1, 0, 1])
    with mask(valid), domain(ids):
        y = checkpoint(block, x, use_reentrant=False, context_fn=keep_mask)
        (expected,) = torch.autograd.grad(block(x).sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], expected, **CLOSE)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_recomputation_without_its_mask_says_what_to_do(reentrant: bool) -> None:
    layer = SyncBatchNorm(C)
    x = torch.randn(6, C, 5, requires_grad=True)
    with mask(positions(6, C, 5)):
        y = checkpoint(layer, x, use_reentrant=reentrant)
    with pytest.raises(ValueError, match=r"checkpoint with context_fn=syncnorm\.keep_mask"):
        y.sum().backward()
    checkpoint(layer, x, use_reentrant=reentrant).sum().backward()  # the next batch has no mask


def test_a_forward_without_a_mask_is_recomputed_without() -> None:
    layer, x = SyncBatchNorm(C).double(), sample(6, C, 5).requires_grad_()
    y = checkpoint(layer, x, use_reentrant=False, context_fn=keep_mask)
    with mask(positions(6, C, 5)):
        layer(x)
        (dx,) = torch.autograd.grad(y.square().sum(), x)
    torch.testing.assert_close(dx, torch.autograd.grad(layer(x).square().sum(), x)[0], **CLOSE)


def test_contexts_nest_and_belong_to_their_thread() -> None:
    layer, x, elsewhere = SyncBatchNorm(C).eval(), torch.ones(2, C, 2), []
    plain = nn.BatchNorm1d(C).eval()
    first, second = torch.tensor([[True, False]] * 2), torch.tensor([[False, True]] * 2)
    for norm in (layer, plain):
        with mask(first):
            with mask(second):
                assert norm(x).ne(0)[0, 0].tolist() == [False, True]
                with mask(None):
                    assert norm(x).ne(0).all()
            assert norm(x).ne(0)[0, 0].tolist() == [True, False]
            thread = threading.Thread(target=lambda norm=norm: elsewhere.append(norm(x).ne(0).all()))
            thread.start()
            thread.join()
            with pytest.raises(RuntimeError), mask(second):
                raise RuntimeError
            assert norm(x).ne(0)[0, 0].tolist() == [True, False]
        assert norm(x).ne(0).all()
    assert all(elsewhere)


def test_without_a_mask_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyncBatchNorm, "valid", lambda *_: pytest.fail("a layer asked for a mask"))
    SyncBatchNorm(C)(torch.randn(6, C, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["bn", "sync_bn", "ghost_bn", "gn", "in"])
def test_types_and_layouts_stay(dtype: torch.dtype, name: str) -> None:
    layer = make_norm(name, C, **{"ghost_bn": {"virtual_ranks": 2}, "gn": {"groups": 2}}.get(name, {}))
    exact = copy.deepcopy(layer).double()
    x, valid = torch.randn(6, C, 4, 3).to(dtype).to(memory_format=torch.channels_last), positions(6, C, 4, 3)
    for training in (True, False):
        with mask(valid):
            y, expected = layer.train(training)(x), exact.train(training)(x.double())
        assert y.dtype is dtype
        assert y.is_contiguous(memory_format=torch.channels_last)
        tolerance = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 2e-6}[dtype]
        torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["bn", "sync_bn"])
def test_a_compiled_model_follows_the_mask_or_its_absence(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(C, C, 1), make_norm(name, C)).double()
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    x, valid = sample(6, C, 4, 3), positions(6, C, 4, 3)
    for m in (None, valid, ~valid, None):
        if m is None:
            torch.testing.assert_close(compiled(x), model(x), **CLOSE)
        else:
            with mask(m):
                torch.testing.assert_close(compiled(x), model(x), **CLOSE)


def test_recalibrate_counts_valid_positions_alone() -> None:
    model = syncnorm.convert(nn.Sequential(nn.BatchNorm2d(C)), "sync_bn").double()
    batches = [{"x": sample(6, C, 4, 3, seed=s), "m": positions(6, C, 4, 3, seed=s)} for s in range(3)]

    def call(model: nn.Module, batch: dict[str, Tensor]) -> None:
        with mask(batch["m"]):
            model(batch["x"])

    for each in (model, nn.Sequential(nn.BatchNorm2d(C)).double()):
        syncnorm.recalibrate(each, batches, call=call)
        values = torch.cat([batch["x"].movedim(1, -1)[batch["m"]] for batch in batches])
        torch.testing.assert_close(each[0].running_mean, values.mean(0), **CLOSE)
        torch.testing.assert_close(each[0].running_var, values.var(0), **CLOSE)


def test_a_mask_around_accumulation_is_refused() -> None:
    model, parts = nn.Sequential(nn.BatchNorm1d(C)), list(torch.randn(2, 3, C, 5))
    said = "open around syncnorm.accumulate: open it within the loss"
    with mask(torch.ones(3, 5).bool()), pytest.raises(syncnorm.errors.UserError, match=said):
        syncnorm.accumulate(model, parts, lambda model, x: model(x).sum())
    with mask(None):
        syncnorm.accumulate(model, parts, lambda model, x: model(x).sum())
