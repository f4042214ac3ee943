"""Which batch norms can be folded: found by tracing the forward, or by the order in a Sequential."""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from syncnorm.errors import UserError, where_raised
from syncnorm.norms import NORMS
from syncnorm.norms.weight.weight_side import raw_parameter
from syncnorm.surgery.folding.values import TRANSPOSED, as_affine, folded
from syncnorm.surgery.layers.any_dimensions import BatchNorm
from syncnorm.surgery.layers.fused import Rest, norm_class, rest_of
from syncnorm.surgery.layers.modes import evaluation
from syncnorm.surgery.layers.own_parts import base_class
from syncnorm.surgery.layers.preconditions import check_model, check_whole, uncompiled
from syncnorm.surgery.layers.replace import is_retired
from syncnorm.surgery.layers.substitute import spec_of_layer

LINEAR_MAPS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED, nn.Linear)
_NOTHING_BEFORE = "what comes right before it is no convolution or linear layer"


@dataclass(frozen=True)
class FoldReport:
    """What `fold` does with each batch norm of a model.

    folded: for each folded batch norm, the names of the layers that absorb it.
    left: for each other batch norm, why it stays.
    """

    folded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Say in one sentence what stays and why; an empty string if nothing does."""
        if not self.left:
            return ""
        by_reason: dict[str, list[str]] = defaultdict(list)
        for name, reason in self.left.items():
            by_reason[reason].append(f"'{name}'")
        said = "; ".join(
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
            for reason, names in by_reason.items()
        )
        total = len(self.left) + len(self.folded)
        return f"{len(self.left)} of {total} batch norms are not folded and stay as they are ({said})."


def fold_report(model: nn.Module) -> FoldReport:
    """Return what `fold(model)` would do, without changing the model.

    Raises:
        UserError: a forward that cannot be traced; a model that is scripted or quantised, or has no weights yet.
    """
    return traced_report(model)[0]


def traced_report(model: nn.Module) -> tuple[FoldReport, fx.Graph | None]:
    """Return the report of `fold_report`, and the graph that it follows, if there is anything to fold."""
    check_model(model)
    check_whole(model, "fold")
    if any(p.is_meta for p in model.parameters()):
        raise UserError("the model is on the meta device, where it has no weights to fold into: load them first.")
    if _is_reported(model):
        return FoldReport(left={"": _NOTHING_BEFORE}), None
    if not norms_with_statistics(model):
        return FoldReport(), None
    with evaluation(model), uncompiled():
        trace = _trace(model)
        return _report_of(model, trace), trace.graph


def norms_with_statistics(model: nn.Module) -> dict[str, nn.Module]:
    """Return the norms that a fold report covers, with their names: those with statistics for evaluation."""
    return {name: module for name, module in model.named_modules() if _is_reported(module)}


def _is_reported(module: nn.Module) -> bool:
    """Return whether `module` is a batch norm, or a norm whose row has `fold`."""
    spec = spec_of_layer(module)
    return isinstance(module, _BatchNorm) if spec is None else spec.fold is not None


def _foldable_classes(layer: nn.Module) -> tuple[type[nn.Module], ...]:
    """Return the classes that evaluate as their rows say, including that of `layer` if a function built it."""
    rows = [spec for spec in NORMS.values() if callable(spec.fold)]
    classes = [kind for spec in rows for kind in (spec.layer, *spec.by_ndim.values()) if inspect.isclass(kind)]
    spec = spec_of_layer(layer)
    built = [type(layer)] if spec is not None and not inspect.isclass(spec.layer) else []
    return (_BatchNorm, nn.SyncBatchNorm, BatchNorm, *classes, *built)


def sequential_report(model: nn.Module) -> FoldReport:
    """Return what can be folded judging by order alone: neighbours in an `nn.Sequential` that are used nowhere else.

    This is wrong if the forward calls parts of a Sequential directly, so outputs must be compared.
    """
    names = {module: name for name, module in model.named_modules()}
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    before = {
        second: first
        for parent in model.modules()
        if type(parent).forward is nn.Sequential.forward
        for first, second in pairwise(parent.children())
    }
    report = FoldReport()
    with evaluation(model):
        for name, layer in norms_with_statistics(model).items():
            source = before.get(layer)
            if source is None or not isinstance(source, LINEAR_MAPS):
                report.left[name] = "no convolution or linear layer comes right before it in an nn.Sequential"
            elif places[layer] > 1 or places[source] > 1:
                report.left[name] = "it or the layer before it stands in more than one place"
            elif problem := unfit(layer, source, names[source]):
                report.left[name] = problem
            else:
                report.folded[name] = (names[source],)
    return report


class _Tracer(fx.Tracer):
    """A tracer that does not enter batch norms, the layers that could absorb them, or `opaque` modules.

    It records its position and the tensors that the forward reads.
    """

    def __init__(self, opaque: set[nn.Module]) -> None:
        super().__init__()
        self.opaque = opaque
        self.entered: list[str] = []
        self.read: set[int] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        closed = _is_reported(m) or isinstance(m, LINEAR_MAPS) or m in self.opaque
        return closed or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.entered.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if isinstance(attr_val, torch.Tensor):
            self.read.add(id(attr_val))
        return super().getattr(attr, attr_val, parameter_proxy_cache)


@dataclass(frozen=True)
class _Trace:
    """The graph of a forward, the ids of the tensors that it reads, and the modules inside opaque parts."""

    graph: fx.Graph
    read: set[int]
    hidden: set[nn.Module]


def _trace(model: nn.Module) -> _Trace:
    """Trace the forward with its required arguments only.

    A part without batch norms that cannot be traced becomes opaque: the tracer does not enter it.
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is not parameter.empty
    }
    opaque: set[nn.Module] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            graph = tracer.trace(model, concrete_args=defaults or None)
        except Exception as error:  # the user's forward may do anything with a proxy
            where = tracer.entered[-1] if tracer.entered else ""
            part = model.get_submodule(where)
            if norms_with_statistics(part):
                raise _untraceable(where, error) from error
            opaque.add(part)
        else:
            return _Trace(graph, tracer.read, {module for part in opaque for module in part.modules()})


def _untraceable(where: str, error: Exception) -> UserError:
    called = f"layer '{where}'" if where else "its own forward"
    said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    line = where_raised(error, without=("torch",))
    return UserError(
        f"the model cannot be traced to fold its batch norms: {called} "
        f"({line}) says '{said}'; write fold(model, example=x) with a batch x to fold neighbours in each "
        "nn.Sequential, checked on x."
    )


def _report_of(model: nn.Module, trace: _Trace) -> FoldReport:
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {module: name for name, module in model.named_modules()}
    calls: dict[nn.Module, list[fx.Node]] = defaultdict(list)
    for node in trace.graph.nodes:
        if node.op == "call_module":
            calls[modules[node.target]].append(node)
    report = FoldReport()
    for name, layer in norms_with_statistics(model).items():
        sources = [modules.get(_called_before(call)) for call in calls[layer]]
        problem = _unfit_norm(layer) or _read_elsewhere(layer, "its values", trace)
        if not problem and not calls[layer]:
            problem = "the forward does not reach it"
        if not problem and not all(isinstance(source, LINEAR_MAPS) for source in sources):
            problem = _NOTHING_BEFORE
        found = [source for source in sources if source is not None]
        for source in found:
            problem = problem or _shared(source, names[source], calls[source], trace)
            problem = problem or _unfit_source(source, names[source], layer)
        if problem:
            report.left[name] = problem
        else:
            report.folded[name] = tuple(names[source] for source in found)
    return report


def _called_before(call: fx.Node) -> str:
    """Return the name of the module whose output is the only argument of `call`; "?" if there is none."""
    before = call.args[0] if len(call.args) == 1 and not call.kwargs else None
    return str(before.target) if isinstance(before, fx.Node) and before.op == "call_module" else "?"


def _shared(source: nn.Module, name: str, calls: list[fx.Node], trace: _Trace) -> str:
    if len(calls) > 1:
        return f"'{name}' is used more than once"
    if source in trace.hidden:
        return f"'{name}' is also in a part of the model that cannot be traced"
    if len(calls[0].users) > 1:
        return f"the output of '{name}' is used elsewhere too"
    return _read_elsewhere(source, f"the weights of '{name}'", trace)


def _read_elsewhere(layer: nn.Module, what: str, trace: _Trace) -> str:
    read = any(id(tensor) in trace.read for tensor in (*layer.parameters(), *layer.buffers()))
    return f"{what} are read elsewhere in the forward" if read else ""


def unfit(norm: nn.Module, source: nn.Module, name: str) -> str:
    """Say why `norm` must not be folded into `source`, called `name`; an empty string if it can be."""
    return _unfit_norm(norm) or _unfit_source(source, name, norm)


def _unfit_norm(layer: nn.Module) -> str:
    """Say why `layer` must not be folded, whatever comes before it; an empty string if it can be."""
    spec = spec_of_layer(layer)
    if spec is not None and isinstance(spec.fold, str):
        return spec.fold
    if isinstance(layer, _BatchNorm) and layer.running_mean is None:
        return "it keeps no running statistics"
    if layer.training:
        return "it stays in training mode when the model is put into evaluation"
    problem = _unfit(layer, "it") or _unknown_forward(layer)
    if not problem and not all(values.isfinite().all() for values in as_affine(layer)):
        problem = "its statistics are not finite, or its variance is negative"
    return problem


def _unfit_source(source: nn.Module, name: str, norm: nn.Module) -> str:
    """Say why `norm` must not be folded into `source`; an empty string if it can be."""
    problem = "" if _has_forward_of(source, LINEAR_MAPS) else _own_forward(source, f"'{name}'")
    problem = problem or _unfit(source, f"'{name}'")
    if not problem and not all(values.isfinite().all() for values in folded(source, norm)):
        problem = f"the weight or bias of '{name}' would not be finite in {source.weight.dtype}"
    return problem


def rest_to_keep(norm: nn.Module) -> Rest | None:
    """Return what `norm` does besides a norm that is known to fold.

    Raises:
        UserError: it does something else.
    """
    known = _foldable_classes(norm)
    if type(norm) is norm_class(norm) and _has_forward_of(norm, known):
        return None
    rest = rest_of(norm, "")
    base = norm_class(norm) if type(norm) is not norm_class(norm) else base_class(type(norm))
    if all(base.forward is not kind.forward for kind in known):
        raise UserError(_own_forward(norm, "it"))
    return rest


def _unknown_forward(norm: nn.Module) -> str:
    """Say that a norm does something else than what it is known for, with or without something after it."""
    try:
        rest_to_keep(norm)
    except UserError:
        return _own_forward(norm, "it")
    return ""


def _has_forward_of(layer: nn.Module, known: tuple[type[nn.Module], ...]) -> bool:
    patched = "forward" in vars(layer) and not is_retired(layer)
    patched = patched or type(layer).__call__ is not nn.Module.__call__
    return not patched and any(norm_class(layer).forward is kind.forward for kind in known)


def _own_forward(layer: nn.Module, called: str) -> str:
    return f"{called} is a {type(layer).__name__} with a forward of its own"


def _unfit(layer: nn.Module, called: str) -> str:
    if any(is_lazy(p) for p in layer.parameters()):
        return f"{called} does not know its channels yet"
    if any(not isinstance(raw_parameter(layer, key), nn.Parameter | None) for key in ("weight", "bias")):
        return f"{called} computes its weight or bias from something else (it is parametrised or pruned)"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return f"{called} has forward hooks"
    return ""
