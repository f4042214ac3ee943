"""Which batch norms can be folded, for a model that cannot be traced: by its order, and by a run on an example."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from syncnorm.surgery.folding.plan import LINEAR_MAPS, FoldReport, norms_with_statistics, sequential_report, unfit
from syncnorm.surgery.layers.modes import evaluation
from syncnorm.surgery.layers.preconditions import call, uncompiled


def run_report(model: nn.Module, example: Any) -> FoldReport:
    """Return what can be folded: neighbours in an `nn.Sequential`, and pairs that the example went through.

    A pair is a layer whose every output goes, unchanged, into the same batch norm, and into nothing else. A batch
    norm that the example does not reach stays. (Outputs must be compared: neighbours may be used in another order.)

    Raises:
        UserError: the model fails on the example.
    """
    report, names = sequential_report(model), {module: name for name, module in model.named_modules()}
    run = _Run(model)
    run.on(example)
    for name, norm in norms_with_statistics(model).items():
        sources = run.before[norm]
        if not sources:
            report.folded.pop(name, None)
            report.left.setdefault(name, "the example does not reach it")
        elif name in report.left and None not in sources:
            fed = Counter(source for source in sources if source is not None)
            alone = all(run.calls[source] == count and source not in run.shared for source, count in fed.items())
            with evaluation(model):
                if alone and not any(unfit(norm, source, names[source]) for source in fed):
                    del report.left[name]
                    report.folded[name] = tuple(names[source] for source in fed)
    return report


class _Run(TorchFunctionMode):
    """A run of `model` that records which layer each batch norm's input comes from.

    before: for each batch norm, the layer that each of its inputs comes from, unchanged; None for no such layer.
    calls: how often each such layer was called.
    shared: layers with outputs that something else than a batch norm takes.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.before: dict[nn.Module, list[nn.Module | None]] = defaultdict(list)
        self.calls: Counter[nn.Module] = Counter()
        self.shared: set[nn.Module] = set()
        self._made: dict[int, tuple[Tensor, int, Any]] = {}  # by id; the tensor itself, so that the id stays its own
        self._within = 0

    def on(self, example: Any) -> None:
        """Run the model on `example`, in evaluation mode."""
        devices = sorted({p.device.index for p in self.model.parameters() if p.device.type == "cuda"})
        norms = list(norms_with_statistics(self.model).values())
        hooks: list[RemovableHandle] = []
        try:
            for layer in self.model.modules():
                if isinstance(layer, LINEAR_MAPS):
                    hooks.append(layer.register_forward_hook(self._leave))
            for norm in norms:
                hooks += [norm.register_forward_pre_hook(self._enter), norm.register_forward_hook(self._left)]
            with ExitStack() as stack:
                for context in (torch.no_grad(), torch.random.fork_rng(devices=devices), evaluation(self.model)):
                    stack.enter_context(context)
                stack.enter_context(uncompiled())
                stack.enter_context(self)
                call(self.model, example, what="the example")
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self._within:
            for part in self._flat([args, kwargs or {}]):
                if id(part) in self._made:
                    self.shared.add(self._made[id(part)][2])
        return func(*args, **(kwargs or {}))

    def _flat(self, values: Any) -> list[Any]:
        if isinstance(values, dict):
            values = list(values.values())
        return [part for value in values for part in (self._flat(value) if type(value) in (list, tuple) else [value])]

    def _leave(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.calls[layer] += 1
        version = output._version
        self._made[id(output)] = output, version, layer

    def _enter(self, norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._within += 1
        source = None
        if inputs and id(inputs[0]) in self._made:
            output, version, layer = self._made[id(inputs[0])]
            source = layer if output._version == version and output.dim() == layer.weight.dim() else None
        self.before[norm].append(source)

    def _left(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        self._within -= 1
