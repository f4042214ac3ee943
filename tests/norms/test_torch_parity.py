"""The batch norms beside PyTorch's own: constructor, call, state, derivatives of every kind, tracing, types, devices.

What PyTorch has is read from the installed PyTorch, so that a new argument or method there shows here.
"""

import copy
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm import GhostBatchNorm, SyncBatchNorm, convert, domain, make_norm, norm_names
from syncnorm.errors import UserError
from syncnorm.norms import NORMS, DomainBatchNorm, InstanceNorm, LayerNorm, MixStyle
from syncnorm.norms.core.layer import NormLayer

C = 3
OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 2}, "eval_norm": {"batch": 2}}
BATCH_NORMS = [name for name in norm_names() if name != "bn" and isinstance(NORMS[name].layer, type)]
BATCH_NORMS = [name for name in BATCH_NORMS if issubclass(NORMS[name].layer, _BatchNorm)]
LAYERS = [name for name in norm_names() if isinstance(make_norm(name, C, **OPTIONS.get(name, {})), NormLayer)]


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 1


def made(name: str, **options: Any) -> nn.Module:
    return make_norm(name, C, **OPTIONS.get(name, {}), **options)


def parameters_of(call: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {name: p for name, p in inspect.signature(call).parameters.items() if name != "self"}


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_constructor_and_call_have_torchs_arguments_in_torchs_order(name: str) -> None:
    theirs = nn.SyncBatchNorm if name == "sync_bn" else _BatchNorm
    ours = parameters_of(NORMS[name].layer)
    positional = [p for p in parameters_of(theirs.__init__).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    in_order = [p for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default) for p in in_order] == [(p.name, p.default) for p in positional]
    for p in parameters_of(theirs.__init__).values():
        assert ours[p.name].default == p.default
    assert list(parameters_of(NORMS[name].layer.forward)) == list(parameters_of(theirs.forward)) == ["input"]
    for public in (key for key in dir(theirs) if not key.startswith("_")):
        assert hasattr(NORMS[name].layer, public), public


@pytest.mark.parametrize("name", BATCH_NORMS)
def test_what_the_constructor_makes_is_what_torchs_makes(name: str) -> None:
    for options in ({}, {"affine": False}, {"bias": False}, {"momentum": None}, {"dtype": torch.float64}):
        bias = options.pop("bias", True)
        theirs = nn.BatchNorm2d(C, **options)
        if not bias:
            theirs.register_parameter("bias", None)
        ours = NORMS[name].layer(C, **{**OPTIONS.get(name, {}), **options, "bias": bias})
        found = ours.state_dict()
        for key, value in theirs.state_dict().items():
            assert torch.equal(found[key], value)
            assert found[key].dtype == value.dtype
        assert ("bias" in found) == (theirs.bias is not None)
        shown = repr(theirs).split("(", 1)[1].rstrip(")")
        assert shown in repr(ours)
    layer = NORMS[name].layer(C, **OPTIONS.get(name, {}))
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    for key, value in NORMS["bn"].layer(C).state_dict().items():
        assert torch.equal(layer.state_dict()[key], value)


def test_options_are_shown() -> None:
    assert repr(SyncBatchNorm(C, skip_nonfinite=True)).endswith("skip_nonfinite=True)")


def freeze(layer: nn.Module) -> None:
    layer.track_running_stats = False


def without_statistics(layer: nn.Module) -> None:
    layer.running_mean = layer.running_var = None


def without_counter(layer: nn.Module) -> None:
    layer.num_batches_tracked = None


def set_later(**values: Any) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        for key, value in values.items():
            setattr(layer, key, value)

    return change


def chained(*changes: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
    def change(layer: nn.Module) -> None:
        for one in changes:
            one(layer)

    return change


CHANGES: dict[str, Callable[[nn.Module], None]] = {
    "none": lambda layer: None,
    "frozen by its flag": freeze,
    "no statistics": without_statistics,
    "no statistics, and frozen": chained(without_statistics, freeze),
    "no counter": without_counter,
    "no counter, momentum None": chained(without_counter, set_later(momentum=None)),
    "momentum 0": set_later(momentum=0.0),
    "momentum 1": set_later(momentum=1.0),
    "momentum None": set_later(momentum=None),
    "eps": set_later(eps=0.5),
    "reset": lambda layer: layer.reset_running_stats(),
    "no bias": set_later(bias=None),
    "no affine part": set_later(weight=None, bias=None),
}


def seen(layer: nn.Module) -> list[Tensor]:
    """Outputs in training and evaluation, gradients, and the state, around three steps."""
    found = []
    for step in range(3):
        x = batch(6, C, 4, 3, seed=step).requires_grad_()
        y = layer.train()(x)
        wanted = [x, *layer.parameters()]
        found += [y, *torch.autograd.grad(y.pow(3).sum(), wanted), layer.eval()(x)]
    return found + [value.clone() for value in layer.state_dict().values()]


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize(
    "build", [SyncBatchNorm, lambda c: GhostBatchNorm(c, virtual_ranks=1)], ids=["sync", "ghost"]
)
def test_one_rank_is_torchs_layer_in_whatever_state(
    build: Callable[[int], nn.Module], change: Callable[[nn.Module], None]
) -> None:
    ours, theirs = build(C).double(), nn.BatchNorm2d(C).double()
    for layer in (ours, theirs):
        layer(batch(6, C, 4, 3, seed=9))
        change(layer)
    for a, b in zip(seen(ours), seen(theirs), strict=True):
        if ours.momentum is None:  # 1 / n of a batch is a tensor here, so that no device waits, and rounds otherwise
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(a, b)


def test_the_mean_of_all_batches_is_as_exact_as_float64() -> None:
    ours, theirs = SyncBatchNorm(C, momentum=None).double(), nn.BatchNorm2d(C, momentum=None).double()
    for step in range(7):
        x = batch(8, C, 5, 5, seed=step)
        ours(x), theirs(x)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-12, atol=0)
    expected = torch.stack([batch(8, C, 5, 5, seed=step).mean((0, 2, 3)) for step in range(7)]).mean(0)
    torch.testing.assert_close(ours.running_mean, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in {"cbn"}])
def test_function_transforms_reach_through_training(name: str) -> None:
    """(Cross-iteration batch norm follows the autograd graph of its input.)"""
    model = convert(nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C)), name, **OPTIONS.get(name, {})).double()
    parameters, x = dict(model.named_parameters()), batch(4, 2, 6, 6)

    def loss(p: dict[str, Tensor]) -> Tensor:
        torch.manual_seed(0)
        with domain(torch.arange(4) % 2):
            buffers = {key: value.clone() for key, value in model.named_buffers()}
            return functional_call(model, (p, buffers), (x,)).pow(3).sum()

    names = list(parameters)
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()), allow_unused=True)
    found = grad(loss)(parameters)
    for key, value in zip(names, expected, strict=True):
        torch.testing.assert_close(found[key], torch.zeros_like(found[key]) if value is None else value)


@pytest.mark.parametrize("build", [SyncBatchNorm, lambda c, **o: GhostBatchNorm(c, virtual_ranks=2, **o)])
def test_derivatives_of_every_kind(build: Callable[..., nn.Module]) -> None:
    layer, x = build(C, track_running_stats=False).double(), batch(4, C, 2, 2)
    rows = jacrev(lambda z: layer(z).flatten())(x)
    tangent = batch(*x.shape, seed=1)
    with forward_ad.dual_level():
        pushed = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent))).tangent
    torch.testing.assert_close(pushed.flatten(), rows.flatten(1) @ tangent.flatten())
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    (pulled,) = torch.autograd.grad(y, leaf, torch.eye(y.numel()).double().view(-1, *y.shape), is_grads_batched=True)
    torch.testing.assert_close(pulled.flatten(1), rows.flatten(1))
    many = batch(5, 4, C, 2, 2)
    torch.testing.assert_close(vmap(layer)(many), torch.stack([layer(part) for part in many]))
    empty = batch(0, C, 2, 2).requires_grad_()
    y = build(C).double()(empty)
    (none,) = torch.autograd.grad(y, empty, y.new_ones(2, *y.shape), is_grads_batched=True)
    assert none.shape == (2, 0, C, 2, 2)


@pytest.mark.parametrize("name", [*LAYERS, "scaled_ws"])
@pytest.mark.parametrize("training", [True, False])
def test_fx_records_it_as_one_call(name: str, training: bool) -> None:
    model = convert(nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C)), name, **OPTIONS.get(name, {}))
    traced = fx.symbolic_trace(model.train(training))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert ("0" if name == "scaled_ws" else "1") in called
    twin, x = copy.deepcopy(model), batch(4, 2, 6, 6).float()
    outputs = []
    for each in (twin, traced):
        torch.manual_seed(0)
        with domain(torch.arange(4) % 2):
            outputs.append(each(x))
    assert torch.equal(*outputs)


def test_what_cannot_be_traced_or_scripted_gets_a_sentence() -> None:
    with pytest.raises(UserError, match="SyncBatchNorm cannot be traced by itself: trace a model that contains it"):
        fx.symbolic_trace(SyncBatchNorm(C))
    for name in LAYERS:
        model = nn.Sequential(made(name))
        with pytest.raises(UserError, match=rf"{type(model[0]).__name__}\(3\) cannot be scripted: use torch.export"):
            torch.jit.script(model)


@pytest.mark.parametrize("training", [True, False])
def test_exports_compiles_and_traces(training: bool) -> None:
    x = batch(4, C, 2, 2)
    theirs = nn.BatchNorm2d(C).double()
    theirs(x + 3)
    layer = SyncBatchNorm(C).double()
    layer.load_state_dict(theirs.state_dict())
    expected = theirs.train(training)(x)
    exported = torch.export.export(copy.deepcopy(layer).train(training), (x,)).module()
    torch.testing.assert_close(exported(x), expected)
    compiled = copy.deepcopy(layer).train(training)
    torch.testing.assert_close(torch.compile(compiled, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(compiled.running_mean, theirs.running_mean)
    assert compiled.num_batches_tracked == theirs.num_batches_tracked
    averaging = SyncBatchNorm(C, momentum=None).double().train(training)
    torch.compile(averaging, backend="aot_eager", fullgraph=True)(x)
    assert averaging.num_batches_tracked == int(training)
    if not training:
        torch.testing.assert_close(torch.jit.trace(layer.eval(), x)(x), expected)


@pytest.mark.parametrize("name", [*BATCH_NORMS, "domain_bn", "evonorm_b0", "mabn", "gn", "ln", "in", "rms", "frn"])
def test_a_layer_filled_on_the_meta_device_works(name: str) -> None:
    full, x = made(name), batch(4, C, 3, 3).float()
    for assign in (True, False):
        with torch.device("meta"):
            layer = made(name)
        if not assign:
            layer.to_empty(device="cpu")
        layer.load_state_dict(full.state_dict(), assign=assign)
        twin = copy.deepcopy(full)
        for each in (layer, twin):
            torch.manual_seed(0)
            with domain(torch.arange(4) % 2):
                each.out = each(x)
        assert torch.equal(layer.out, twin.out)
        for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b)


TYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("name", BATCH_NORMS)
@pytest.mark.parametrize("input_type", TYPES, ids=str)
def test_types_may_differ_between_input_weights_and_statistics(name: str, input_type: torch.dtype) -> None:
    """Nothing is worse than the shortest of the three, and training does not differ from evaluation."""
    x = batch(6, C, 4, 3).to(input_type)
    for weights in TYPES:
        for statistics in TYPES:
            layer = made(name).to(statistics)
            for parameter in layer.parameters():
                parameter.data = parameter.data.to(weights)
            exact = made(name).double()
            for training in (True, False):
                outputs = []
                for each, given in ((layer, x), (exact, x.double())):
                    torch.manual_seed(0)
                    with domain(torch.arange(6) % 2):
                        outputs.append(each.train(training)(given))
                assert outputs[0].dtype == input_type
                short = {torch.float16, torch.bfloat16} & {input_type, weights, statistics}
                torch.testing.assert_close(
                    outputs[0].double(), outputs[1], rtol=0.05 if short else 1e-4, atol=0.05 if short else 1e-4
                )
            assert all(
                b.dtype == statistics for key, b in layer.named_buffers() if key in ("running_mean", "running_var")
            )


@pytest.mark.parametrize("training", [True, False])
def test_complex_and_whole_numbers_are_refused(training: bool) -> None:
    for kind in (torch.complex64, torch.int64, torch.bool):
        with pytest.raises(ValueError, match="needs real numbers"):
            SyncBatchNorm(C).train(training)(torch.ones(4, C, dtype=kind))


def test_eps_is_checked() -> None:
    for name in LAYERS:
        if "eps" in inspect.signature(NORMS[name].layer).parameters and name != "ws":
            with pytest.raises(ValueError, match=r"eps is -1\.0: it must be a number, at least 0"):
                NORMS[name].layer(C, eps=-1.0, **OPTIONS.get(name, {}))
    constant = torch.ones(4, C, 2, 2)
    for name in (*BATCH_NORMS, "domain_bn", "evonorm_b0"):
        layer = made(name, eps=0.0)
        with domain(torch.zeros(4, dtype=torch.long)):
            if name in ("frozen_bn", "reference_bn", "hybrid_bn", "full_norm", "diminishing_bn"):
                layer.running_var.zero_()
                layer.running_mean.fill_(1)
            if name in ("frozen_bn", "reference_bn"):
                continue  # they never divide by a batch's deviation
            with pytest.raises(ValueError, match="eps"):
                layer(constant)


def test_a_value_in_a_wrong_position_is_refused() -> None:
    with pytest.raises(ValueError, match=r"InstanceNorm\(3\): affine is 0.1: it must be True or False"):
        InstanceNorm(C, 1e-5, 0.1)
    with pytest.raises(ValueError, match=r"affine is 0\.1"):
        LayerNorm(C, 1e-5, 0.1)
    with pytest.raises(ValueError, match=r"affine is 0\.1"):
        make_norm("diminishing_bn", C).__class__(C, 1e-5, 0.1, 0.1)
    with pytest.raises(ValueError, match=r"tlu is 0\.1"):
        NORMS["frn"].layer(C, 1e-6, True, 0.1)
    with pytest.raises(ValueError, match="process_group is 'cpu': it must be a group"):
        SyncBatchNorm(C, 1e-5, 0.1, True, True, "cpu")
    with pytest.raises(ValueError, match=r"affine is 0\.1"):
        DomainBatchNorm(C, 2, 1e-5, 0.1, 0.1)
    assert MixStyle(C)(torch.ones(2, C, 2, 2)).shape == (2, C, 2, 2)
    layer = NORMS["diminishing_bn"].layer(C, 1e-5, 0.1, False, True, "cpu", torch.float64)
    assert layer.weight is None
    assert layer.running_mean.dtype == torch.float64


def test_convert_sync_batchnorm_does_what_torchs_does() -> None:
    model = nn.Sequential(nn.Conv2d(2, C, 1), nn.BatchNorm2d(C, momentum=0.3), nn.Sequential(nn.BatchNorm1d(C)))
    model[1].track_running_stats = False
    model[1].qconfig = "kept"
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model).eval())
    before = {key: id(value) for key, value in model.state_dict(keep_vars=True).items()}
    ours = SyncBatchNorm.convert_sync_batchnorm(model.eval())
    assert {key: id(value) for key, value in ours.state_dict(keep_vars=True).items()} == before
    for a, b in ((ours[1], theirs[1]), (ours[2][0], theirs[2][0])):
        assert type(a) is SyncBatchNorm
        for key in ("eps", "momentum", "affine", "track_running_stats", "training", "num_features", "process_group"):
            assert getattr(a, key) == getattr(b, key)
    assert ours[1].qconfig == "kept"
    assert isinstance(SyncBatchNorm.convert_sync_batchnorm(nn.SyncBatchNorm(C)), SyncBatchNorm)
    for lost in (nn.LazyBatchNorm2d(), type("Fused", (nn.BatchNorm2d,), {"forward": lambda self, x: x})(C)):
        with pytest.raises(UserError, match=re.escape(f"{type(lost).__name__} is not PyTorch's own batch norm")):
            SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(lost))
