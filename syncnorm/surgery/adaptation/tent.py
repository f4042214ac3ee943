"""Adapt a model to the batches that it predicts by minimising the entropy of its predictions.

adapt = syncnorm.tent(model)
for x in stream:
    logits = adapt(x)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from syncnorm.errors import UserError
from syncnorm.norms.core.ranks.collectives import rank_and_size, sum_over_ranks
from syncnorm.surgery.conversion.convert import batch_norms, convert
from syncnorm.surgery.layers.preconditions import call, check_changeable, check_whole


class Tent:
    """The adaptation step of `tent`: called with a batch (N, ...), it returns logits (N, K) and adapts the model.

    model: the model being adapted.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        shared: bool = False,
        group: ProcessGroup | None = None,
    ) -> None:
        self.model, self.steps = model, steps
        self._shared, self._group = shared, group
        self._optimizer = optimizer
        self._affine: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._start = [p.detach().clone() for p in self._affine], copy.deepcopy(optimizer.state_dict())

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of `x`, and adapt the model; the last step takes effect from the next batch.

        Raises:
            UserError: a batch that the model cannot process, predictions that are not logits (N, K), or a gradient
                that is not finite; the failing step changes no weights.
        """
        logits = torch.empty(0)
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone() if isinstance(x, Tensor) and x.is_inference() else x
            for _ in range(self.steps):
                logits = call(self.model, x, what="the batch to adapt to")
                if not isinstance(logits, Tensor) or logits.dim() != 2:
                    what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
                    raise UserError(
                        f"TENT needs logits (N, K), and the model returns {what}: wrap it to return them."
                    )
                self._step(entropy(logits))
        return logits.detach()

    def _step(self, entropies: Tensor) -> None:
        several = self._shared and rank_and_size(self._group)[1] > 1
        loss = entropies.sum() if several else entropies.mean()
        slopes: tuple[Tensor | None, ...] = ()
        if loss.requires_grad:
            slopes = torch.autograd.grad(loss, self._affine, allow_unused=True)
        if several:
            slopes = self._of_all(slopes, len(entropies))
        reached = [slope.isfinite().all() for slope in slopes if slope is not None]
        if not reached or not torch.stack(reached).all():
            why = "the predictions depend on no batch norm" if not reached else "the entropy's gradient is not finite"
            raise UserError(f"TENT cannot adapt to this batch: {why}, so the weights stay as they are.")
        for p, slope in zip(self._affine, slopes, strict=True):
            p.grad = slope
        self._optimizer.step()
        self._optimizer.zero_grad()

    def _of_all(self, slopes: tuple[Tensor | None, ...], samples: int) -> tuple[Tensor | None, ...]:
        """Return the gradients of the mean over all ranks' samples, from those of this rank's sum."""
        held = [slope for slope in slopes if slope is not None]
        if not held:
            return slopes
        flat = torch.cat([*(slope.flatten() for slope in held), held[0].new_tensor([float(samples)])])
        *sums, count = sum_over_ranks(flat, self._group).split([*(slope.numel() for slope in held), 1])  # type: ignore[no-untyped-call]
        means = iter((total / count).view_as(slope) for total, slope in zip(sums, held, strict=True))
        return tuple(None if slope is None else next(means) for slope in slopes)

    @torch.no_grad()
    def reset(self) -> None:
        """Restore weights, biases and optimiser to their state before the first step."""
        values, state = self._start
        for p, value in zip(self._affine, values, strict=True):
            p.copy_(value)
        self._optimizer.load_state_dict(copy.deepcopy(state))


def tent(
    model: nn.Module,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    lr: float = 1e-3,
    steps: int = 1,
    sync: bool | None = None,
    process_group: ProcessGroup | None = None,
    **options: Any,
) -> Tent:
    """Prepare `model` for test-time entropy minimisation, in place, and return the step that adapts it.

    Each step normalises with the batch's own statistics and takes a gradient step on the batch norms' weights and
    biases only. It minimises the mean entropy of the predictions,

        H = -1/N sum_i sum_k p_ik log p_ik,   p_i = softmax(logits_i)

    The batch norms are converted to "prediction_bn", and the model is put into evaluation mode, without dropout (the
    source stays in training mode). As in the source, the logits are those from before the last step. `revert` undoes
    the conversion and keeps the adapted weights; call `reset()` first to restore the original weights.
    `requires_grad` of the other parameters does not change.

    Source: TENT (Wang et al., arXiv 2006.10726). Adam with 1e-3: theirs for CIFAR, from memory, not confirmed.

    Args:
        model: a classifier that takes a batch and returns logits (N, K).
        optimizer: builds an optimiser from a list of parameters, `lr` and `options`.
        lr: its learning rate.
        steps: number of steps per batch, at least 1.
        sync: under torchrun, let all ranks adapt one model together, as one process would on all their batches: each
            step goes by the statistics and the entropy of the samples of all ranks, which start from equal models
            and call it equally often. (A batch may be empty, x[:0].) Otherwise each rank adapts a model of its own.
        process_group: those ranks; given, `sync` is True.
        options: further arguments of the optimiser, e.g. momentum=0.9.

    Raises:
        UserError: a model without a batch norm that has a weight or bias, steps below 1, options that the optimiser
            does not accept, an optimiser that needs a closure, or whatever `convert` raises; the model is then
            unchanged.
    """
    check_changeable(model)
    check_whole(model, "TENT")
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"steps is {steps!r}: TENT takes a whole number of steps on each batch, at least 1.")
    layers = batch_norms(model).values()
    found = (p for layer in layers for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter))
    affine = list(dict.fromkeys(found))  # layers may share a parameter
    if not affine:
        raise UserError("TENT adapts the weights and biases of batch norms, and the model has none that has any.")
    try:
        made = optimizer(affine, lr=lr, **options)
    except (TypeError, ValueError) as error:
        raise UserError(f"TENT's optimiser cannot be made with lr={lr} and {options}: {error}") from error
    closure = signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise UserError(f"TENT's optimiser is {type(made).__name__}, whose step needs a closure: choose another.")
    model = convert(model, "prediction_bn", sync=sync, process_group=process_group).eval()
    for p in affine:
        p.requires_grad_(True)
    return Tent(model, made, steps, sync or process_group is not None, process_group)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits), in nats: (N, K) to (N,)."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)
