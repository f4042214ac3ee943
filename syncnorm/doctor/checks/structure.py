"""Structure: what stands before, after and beside a norm."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from syncnorm.doctor.case import Case
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.watch.graph import ACTIVATIONS, SUMS, VIEWS, Node, is_a
from syncnorm.doctor.watch.trace import Call, Linear
from syncnorm.doctor.words import number, percent

CANCELS = 1e-4
"""A bias is dead if its gradient is below this share of the gradients that it sums up."""
DEAD = 1e-3
"""A channel is dead if |gamma| is at most this, or this share of the layer's largest."""
MOSTLY = 0.5
"""Share of dead channels that is reported."""
BLOCKS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "BmmBackward", "LinearBackward", "MkldnnConvolution")


def dead_bias(case: Case) -> Iterator[Finding]:
    """A bias right before a norm that subtracts it again."""
    total = sum(p.numel() for p in case.model.parameters())
    parameters = dict(case.model.named_parameters())
    for name, norms in dead_biases(case).items():
        count = parameters[name].numel() if name in parameters else 0
        yield Finding(
            name.rpartition(".")[0],
            f"its bias is subtracted again by the norm after it ('{norms[0]}'): it changes nothing, and gets no "
            "gradient",
            "write bias=False",
            "note",
            "measured",
            f"{count} parameters, {percent(count / max(total, 1))} of the model's",
        )


def dead_biases(case: Case) -> dict[str, list[str]]:
    """Return the biases, by the parameter's name, that a norm cancels in every use; each with the norms that do."""
    verdicts: dict[str, list[Call | None]] = {}
    for one in case.training.linear:
        norm = _norm_after(case, one)
        verdicts.setdefault(one.bias, []).append(norm if norm is not None and _cancels(one, norm) else None)
    return {
        name: [norm.name for norm in norms if norm is not None]
        for name, norms in verdicts.items()
        if None not in norms
    }


def two_in_a_row(case: Case) -> Iterator[Finding]:
    """A norm whose output goes into another norm, and nowhere else."""
    graph = case.training.graph
    norms = {call.node: call for call in case.training.calls if call.node is not None}
    for call in case.training.calls:
        if call.source is None:
            continue
        before = norms.get(graph.origin(call.source, norms))
        if before is not None and before is not call and len(graph.readers(before.node)) == 1:
            yield Finding(
                call.name,
                f"its input is the output of another norm ('{before.name}'), which goes nowhere else: the second one "
                "undoes the first",
                "leave one of both out",
                "warning",
                "certain" if call.kind == before.kind else "likely",
            )


def after_sum(case: Case) -> Iterator[Finding]:
    """A batch norm after the residual sum, through which the shortcut from block to block goes.

    Deep networks of this kind train less well than those with an untouched shortcut (He et al., arXiv 1603.05027,
    section 4, "BN after addition"). A norm that only branches read, as in pre-activation networks, one before the
    head, and one of a sum of linear branches, which folds into them, are none of these.
    """
    for call in case.training.of("batch"):
        if not call.by_batch or call.source is None or call.node is None or call.moments is None:
            continue
        graph = case.training.graph
        total = graph.origin(call.source)
        if not _is_residual(case, total) or len(graph.readers(total)) != 1 or not _is_shortcut(case, call.node):
            continue
        weight = getattr(call.module, "weight", None)
        deviation = (call.moments.var().double() + 1e-5).sqrt()
        gamma = weight.detach().double().abs() if isinstance(weight, Tensor) else deviation.new_ones(())
        scale = float((gamma / deviation).mean())
        yield Finding(
            call.name,
            "it stands after the residual sum, so that the shortcut from block to block goes through it",
            "put it at the end of the branch, before the sum, if the network is deep; shallow networks and "
            "transformers with norms last are right as they are",
            "note",
            "measured",
            f"it multiplies what the shortcut carries by {scale:.2g} (mean over channels, {case.given.words})",
        )


def _is_residual(case: Case, total: Node, shortcut: Node = None) -> bool:
    """Return whether an operation adds a branch to what the branch started from (`shortcut`, if that is given)."""
    graph = case.training.graph
    if not is_a(total, "AddBackward") or len(total.next_functions) != 2:
        return False
    sides = [graph.origin(node) for node, _ in total.next_functions]
    for start, end in (sides, sides[::-1]):
        if start is None or end is None or shortcut not in (None, start):
            continue
        branch = graph.between(start, end)
        if any(is_a(node, *BLOCKS) for node in branch) and any(is_a(node, *ACTIVATIONS) for node in branch):
            return True
    return False


def _is_shortcut(case: Case, node: Node) -> bool:
    """Return whether a later residual sum adds a branch to the result of `node`, or to an activation of it."""
    graph = case.training.graph
    passed, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        for user in graph.users.get(one, []):
            if _is_residual(case, user, graph.origin(one)):
                return True
            if is_a(user, *VIEWS, *ACTIVATIONS) and user not in passed:
                passed.add(user)
                waiting.append(user)
    return False


def before_softmax(case: Case) -> Iterator[Finding]:
    """A norm whose output goes right into a softmax, which then cannot be sure of anything."""
    graph = case.training.graph
    norms = {call.node: call for call in case.training.calls if call.node is not None}
    for node in graph.nodes:
        if is_a(node, "SoftmaxBackward", "LogSoftmaxBackward"):
            call = norms.get(graph.origin(node.next_functions[0][0], norms))
            if call is not None:
                yield Finding(
                    call.name,
                    "its output goes right into a softmax: the norm fixes the spread of the logits, and so how sure "
                    "the model can be",
                    "leave the norm out, or put it before the layer that makes the logits",
                    "warning",
                    "likely",
                )


def dead_channels(case: Case) -> Iterator[Finding]:
    """A norm most of whose channels are multiplied by almost nothing."""
    for name, (kind, layer) in case.norms.items():
        weight = getattr(layer, "weight", None)
        if kind not in ("batch", "group", "instance", "layer") or not isinstance(weight, Tensor) or weight.is_meta:
            continue
        size = weight.detach().abs().double()
        largest = float(size.max()) if size.numel() else 0.0
        if largest == 0.0:
            if not case.lacks(("input",)) and _ends_here(case, name):
                yield Finding(
                    name,
                    "its weight is 0 in all channels, and no shortcut goes around it: nothing gets through",
                    "start the weight at 1; 0 is for the last norm of a residual branch",
                    "error",
                )
            continue
        dead = size <= max(DEAD, DEAD * largest)
        if float(dead.double().mean()) >= MOSTLY:
            yield Finding(
                name,
                f"|weight| is at most {max(DEAD, DEAD * largest):.1g} in {int(dead.sum())} of {dead.numel()} "
                "channels, which carry nothing",
                "prune these channels, or lower the weight decay on the norm's weight and the learning rate",
                "warning",
                "likely",
            )


def small_groups(case: Case) -> Iterator[Finding]:
    """A norm of each sample by itself whose groups have one value, two, or hardly more."""
    fewest: dict[str, Call] = {}
    for call in case.training.of("group", "instance", "layer", "rms"):
        if call.name not in fewest or call.values < fewest[call.name].values:
            fewest[call.name] = call
    for name, call in fewest.items():
        if call.values > 4:
            continue
        if call.values == 1:
            what = "it normalises single values, so its output is a constant, whatever the input"
            if call.kind == "rms":
                what = "it normalises single values, of which the sign alone is left"
        elif call.values == 2:
            what = "it normalises groups of 2 values, of which is left which one is larger"
        else:
            what = f"it normalises groups of {call.values} values, which keeps little of a sample"
        yield Finding(
            name,
            what,
            "take fewer groups, so that a group has 8 values or more",
            "error" if call.values == 1 else "warning" if call.values == 2 else "note",
            "certain",
            f"input of {number(call.shape[1]) if len(call.shape) > 1 else 1} channels, shape {tuple(call.shape)}",
        )


def _norm_after(case: Case, one: Linear) -> Call | None:
    """Return the norm that alone takes the output of a layer, unchanged."""
    graph = case.training.graph
    if len(graph.readers(one.node)) != 1:
        return None
    found = (
        c for c in case.training.calls if c.source is not None and graph.origin(c.source, {one.node}) is one.node
    )
    return next(found, None)


def _cancels(one: Linear, norm: Call) -> bool:
    if one.total is None or one.size is None or not (one.size > 0).any():
        return norm.kind == "batch" and norm.by_batch and norm.shape[1] == one.channels and norm.source is one.node
    some = one.size > 0
    return bool((one.total[some].abs() <= CANCELS * one.size[some]).all())


def _ends_here(case: Case, name: str) -> bool:
    """Return whether nothing goes around a norm: no sum joins its output with what does not come from it."""
    graph = case.training.graph
    starts = [
        call.node for call in case.training.calls if call.name == name and call.listed and call.node is not None
    ]
    seen, waiting = set(starts), list(starts)
    while waiting:
        for user in graph.users.get(waiting.pop(), []):
            if is_a(user, *SUMS, "CatBackward", "StackBackward"):
                others = [before for before, _ in user.next_functions if before is not None]
                around = [one for one in others if not any(graph.reaches(start, one) for start in starts)]
                if any(not is_a(graph.origin(one), "torch::autograd::AccumulateGrad") for one in around):
                    return False
            if user not in seen and not is_a(user, *BLOCKS):
                seen.add(user)
                waiting.append(user)
    return bool(starts)
