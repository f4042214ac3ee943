"""One step of training on a copy, watched: which norms run, on what, and what the step leaves behind.

Norms are found by type, by the functions of torch.nn.functional that they call, and by what they do: a layer of an
unknown class whose output for a sample changes with the rest of the batch is a batch norm, whatever it is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.overrides import TorchFunctionMode

from syncnorm._torch import in_backward
from syncnorm.doctor.watch.graph import VIEWS, Graph, Node, is_a
from syncnorm.doctor.watch.inputs import Inputs, tensors_of
from syncnorm.doctor.watch.kinds import Kind, kind_of, uses_the_batch, values_of
from syncnorm.doctor.watch.quiet import watched_modules
from syncnorm.moments import Moments

FUNCTIONS: dict[Any, tuple[Kind, str, int]] = {
    F.batch_norm: ("batch", "training", 5),
    F.instance_norm: ("instance", "", 0),
    F.group_norm: ("group", "num_groups", 1),
    F.layer_norm: ("layer", "normalized_shape", 1),
    F.rms_norm: ("rms", "normalized_shape", 1),
}
"""The functions that normalise: the kind, and the argument that says more, by name and place."""
LINEAR = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear)


@dataclass
class Call:
    """One use of a norm.

    name: of the module that did it, a norm or the owner of a function's call; of one that no module lists, that of
        the module that called it.
    module: the norm; None for a call of a function such as F.batch_norm, or of a layer of an unknown class.
    what: the class, or the function.
    listed: whether the model's modules contain it.
    values: how many values a statistic rests on (`values_of`).
    by_batch: whether it normalised a sample with others of its batch.
    moments: of each channel of the input, for a batch norm.
    source, node: the operations that made the input, and the output.
    """

    name: str
    kind: Kind
    module: nn.Module | None
    what: str
    listed: bool
    shape: Size
    values: int
    by_batch: bool
    moments: Moments | None
    source: Node | None
    node: Node | None


@dataclass
class Linear:
    """One use of a convolution or linear layer with a bias: its parameter's name, and the gradient that it got.

    total, size: the sums over everything but channels of the output's gradient, and of its absolute value.
    """

    bias: str
    channels: int
    node: Node
    total: Tensor | None = None
    size: Tensor | None = None


@dataclass
class Trace:
    """What was seen in one step of training."""

    samples: int
    calls: list[Call] = field(default_factory=list)
    linear: list[Linear] = field(default_factory=list)
    moves: dict[str, int] = field(default_factory=dict)
    """For each batch norm with a counter, by how much a forward and backward pass moved it."""
    uses: Counter[str] = field(default_factory=Counter)
    """How often the forward called each batch norm."""
    finite: bool = True
    graph: Graph = field(default_factory=lambda: Graph([]))

    def of(self, *kinds: Kind) -> list[Call]:
        """Return the calls of norms of these kinds, in order."""
        return [call for call in self.calls if call.kind in kinds]


def trace(twin: nn.Module, inputs: Inputs) -> Trace:
    """Run a step of training on `twin`, which is a copy, and return what was seen.

    Raises:
        UserError: the model fails; the sentence names the layer.
    """
    for p in twin.parameters():
        if p.is_floating_point():
            p.requires_grad_(True)
    twin.train()
    watch = _Watch(twin, inputs)
    counters = _counters(twin)
    with torch.enable_grad(), watch.running():
        outputs = tensors_of(inputs.call(twin))
        watch.forward = False
        found = watch.trace
        found.finite = all(bool(x.isfinite().all()) for x in outputs if x.is_floating_point())
        ends = [x for x in outputs if x.requires_grad and x.is_floating_point()]
        nodes = [x.grad_fn for x in ends] + [call.node for call in found.calls]
        found.graph = Graph([node for node in nodes if node is not None])
        if ends and found.finite:
            generator = torch.Generator().manual_seed(1)
            torch.autograd.backward(
                ends, [torch.randn(x.shape, generator=generator).to(x.device, x.dtype) for x in ends]
            )
    found.moves = {name: int(value) - counters[name] for name, value in _counters(twin).items()}
    return found


def _counters(model: nn.Module) -> dict[str, int]:
    return {
        name: int(module.num_batches_tracked)
        for name, module in model.named_modules()
        if kind_of(module) == "batch" and isinstance(getattr(module, "num_batches_tracked", None), Tensor)
    }


class _Watch(TorchFunctionMode):
    """Fills a trace while the model runs: from hooks on all modules, and from the functions that they call."""

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model, self.inputs = model, inputs
        self.trace = Trace(inputs.count)
        self.forward = True
        self._norms: list[Call | None] = []  # the known norms that are running, outermost first
        self._probing = False
        self._ids = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._biases = {id(p): name for name, p in model.named_parameters()}
        self._restore: dict[int, tuple[Tensor, Tensor]] = {}
        self._stack: list[str] = []
        self._kinds: dict[nn.Module, Kind | None] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch everything within; afterwards restore what is no part of the model."""
        with ExitStack() as stack:
            stack.callback(self._put_back)
            self._stack = stack.enter_context(watched_modules(self.model, self.inputs, self._enter, self._leave))
            stack.enter_context(self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in FUNCTIONS and not self._probing:
            return self._norm_function(func, args, kwargs)
        result = func(*args, **kwargs)
        if func in LINEAR and self.forward and not self._probing:
            self._linear(args, kwargs, result)
        return result

    def _norm_function(self, func: Any, args: Any, kwargs: Any) -> Any:
        kind, extra, place = FUNCTIONS[func]
        x: Tensor = args[0] if args else kwargs["input"]
        if _is_weight(x):  # standardised by a function for activations, as some convolutions do
            return func(*args, **kwargs)
        value = args[place] if len(args) > place else kwargs.get(extra)
        self._keep([*args[1:], *kwargs.values()])
        moments = _moments(x) if kind == "batch" and self._counts() and not self._norms else None
        shape, source = x.shape, x.grad_fn
        result: Tensor = func(*args, **kwargs)
        if not self._counts():
            return result
        if self._norms:
            running = self._norms[-1]
            if running is not None:
                running.node = result.grad_fn
                if kind == "batch" and running.kind == "batch":
                    running.by_batch = bool(value)
        else:
            where = self._stack[-1] if self._stack else ""
            by_batch = kind == "batch" and bool(value)
            values = values_of(kind, None, shape, value)
            name = f"F.{func.__name__}"
            call = Call(where, kind, None, name, True, shape, values, by_batch, moments, source, result.grad_fn)
            self.trace.calls.append(call)
        return result

    def _linear(self, args: Any, kwargs: Any, result: Any) -> None:
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        name = self._biases.get(id(bias), "")
        if not name or not isinstance(result, Tensor) or result.grad_fn is None or in_backward():
            return
        dim = result.dim() - 1 if result.shape[-1] == len(bias) and args[1].dim() == 2 else 1
        call = Linear(name, len(bias), result.grad_fn)
        self.trace.linear.append(call)
        others = [place for place in range(result.dim()) if place != dim]

        def see(gradient: Tensor) -> None:
            wide = gradient.double()
            total, size = (wide.sum(others), wide.abs().sum(others)) if others else (wide, wide.abs())
            call.total = total if call.total is None else call.total + total
            call.size = size if call.size is None else call.size + size

        result.register_hook(see)  # type: ignore[no-untyped-call]

    def _enter(self, module: nn.Module, name: str, listed: bool, args: Any) -> None:
        if self._probing:
            return
        kind = self._kind(module)
        if kind is None:
            return
        x = next(iter(tensors_of(args)), None)
        if x is None or not self._counts() or self._norms:
            self._norms.append(None)
            return
        values = values_of(kind, module, x.shape)
        moments = _moments(x) if kind == "batch" else None
        by_batch = kind == "batch" and uses_the_batch(module)
        what = type(module).__name__
        call = Call(name, kind, module, what, listed, x.shape, values, by_batch, moments, x.grad_fn, None)
        self._norms.append(call)
        self.trace.calls.append(call)
        if listed and kind == "batch":
            self.trace.uses[name] += 1

    def _leave(self, module: nn.Module, name: str, listed: bool, args: Any, output: Any) -> None:
        if self._probing:
            return
        if self._kind(module) is not None:
            call = self._norms.pop()
            if call is not None and call.node is None and isinstance(output, Tensor):
                call.node = output.grad_fn
        elif self._counts() and not self._norms and self._is_unknown(module):
            self._probe(module, name, listed, args, output)

    def _kind(self, module: nn.Module) -> Kind | None:
        if module not in self._kinds:
            self._kinds[module] = kind_of(module)
        return self._kinds[module]

    def _counts(self) -> bool:
        return self.forward and not in_backward()

    def _is_unknown(self, module: nn.Module) -> bool:
        """Return whether only a trial can tell what a module does."""
        home = type(module).__module__
        own = not home.startswith(("torch.nn", "syncnorm."))
        return own and not any(True for _ in module.children())

    def _probe(self, module: nn.Module, name: str, listed: bool, args: Any, output: Any) -> None:
        """Run a layer again, on its input and on one with other mates, and record it if their outputs differ."""
        x = next(iter(args), None)
        if not isinstance(x, Tensor) or not x.is_floating_point() or len(args) != 1:
            return
        if not isinstance(output, Tensor) or output.shape != x.shape or self.inputs.count < 2:
            return
        if x.dim() < 2 or len(x) % self.inputs.count or any(c is not None and c.name == name for c in self._recent()):
            return
        keep = len(x) // 2
        swapped = torch.cat([x[:keep], x[:1].expand(len(x) - keep, *x.shape[1:])])
        held = [(buffer, buffer.detach().clone()) for buffer in module.buffers()]
        self._probing = True
        try:
            results = []
            for given in (x, swapped):
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(1)
                    results.append(module.forward(given.detach().clone())[:keep])
                for buffer, value in held:
                    buffer.copy_(value)
        except Exception:  # a layer of the user's may do anything
            return
        finally:
            self._probing = False
        if differ(*results):
            values, what = len(x) * x[0, 0].numel(), type(module).__name__
            node = output.grad_fn
            self.trace.calls.append(
                Call(name, "batch", None, what, listed, x.shape, values, True, _moments(x), None, node)
            )

    def _recent(self) -> list[Call]:
        return self.trace.calls[-1:]

    def _keep(self, values: list[Any]) -> None:
        """Remember tensors that are no part of the model, to restore them."""
        for value in values:
            if isinstance(value, Tensor) and id(value) not in self._ids and id(value) not in self._restore:
                self._restore[id(value)] = (value, value.detach().clone())

    def _put_back(self) -> None:
        with torch.no_grad():
            for value, before in self._restore.values():
                if value.requires_grad and not value.is_leaf:
                    continue  # made by the forward
                if not torch.equal(value, before):
                    value.copy_(before)
                value.grad = None


def differ(one: Tensor, other: Tensor, within: float = 1e-3) -> bool:
    """Return whether two outputs differ by more than rounding, relative to the largest value."""
    if one.shape != other.shape or not one.isfinite().all() or not other.isfinite().all() or not one.numel():
        return False
    return bool((one.double() - other.double()).abs().max() > within * one.double().abs().max())


def _is_weight(x: Tensor) -> bool:
    """Return whether a tensor is a parameter, or a view of one."""
    node = x.grad_fn
    while is_a(node, *VIEWS):
        node = node.next_functions[0][0]  # type: ignore[union-attr]
    return is_a(node, "torch::autograd::AccumulateGrad") or (node is None and x.is_leaf and x.requires_grad)


def _moments(x: Tensor) -> Moments | None:
    if x.dim() < 2 or not x.is_floating_point():
        return None
    return Moments.of(x.detach(), (0, *range(2, x.dim())))
