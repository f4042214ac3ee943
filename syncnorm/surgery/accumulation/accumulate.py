"""Gradient accumulation whose batch norms see the whole step: `syncnorm.accumulate`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from syncnorm.errors import UserError
from syncnorm.norms.core.valid import current_masks
from syncnorm.surgery.accumulation.interception import AtNorms, Norms, no_recomputation, synchronised
from syncnorm.surgery.accumulation.lockstep import Meet, run_in_lockstep
from syncnorm.surgery.accumulation.meeting import Arrival, Meeting, Place, goes_to_host, to_host
from syncnorm.surgery.layers.preconditions import check_model, check_whole, uncompiled

Batch = TypeVar("Batch")


def accumulate(
    model: nn.Module,
    micro_batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    offload: bool | None = None,
) -> Tensor:
    """Add the gradients of a step of several micro-batches to `.grad`, with batch norms that see the whole step.

        losses = syncnorm.accumulate(model, batch.split(2), lambda model, part: criterion(model(part)) / 8)
        optimizer.step()

    The result is that of one large batch: each batch norm normalises all micro-batches with the exact moments of all
    of them, gradients go through these moments, and running statistics move once. Micro-batches may have different
    sizes, also a single sample. Usual accumulation gives each micro-batch its own statistics instead.

    All forwards run side by side and meet at each norm; the backward goes through the norms from the last to the
    first. The norms are batch norms of PyTorch (or foreign ones that call F.batch_norm) and `SyncBatchNorm`, which
    also merges over ranks. Norms that do not see the batch stay as they are. A `syncnorm.mask` within `loss` says
    which positions of its micro-batch count, for all of these. The time is that of the usual forwards
    and backwards, and some for the meetings; where a part of the network lies behind several norms at once, as in a
    DenseNet, its backward runs once for each of them.

    With `offload`, what the backward needs waits in the host's memory. The device then holds the activations of one
    micro-batch between two norms at a time, and what each micro-batch carries past a norm (its residual branch).

    Args:
        model: the model, also in DistributedDataParallel; then the gradients are averaged over its ranks, as usual.
        micro_batches: anything that `loss` takes; at least one, on each rank.
        loss: called once for each micro-batch with the model (without its wrapper), returns a scalar. The losses are
            summed, so divide by the number of samples of the step where their mean is wanted.
        offload: whether saved tensors wait in the host's memory; None: where the input of a norm is not on the CPU.

    Returns:
        The sum of the losses, without a gradient.

    Raises:
        UserError: no micro-batch; a loss that is no scalar, or does not depend on what is trained; micro-batches that
            go through different norms; a norm whose batch statistics follow a rule of their own, or that gets another
            number of channels; a `syncnorm.mask` around it; activation checkpointing around a norm, whose
            recomputation would be of one micro-batch. If anything is raised in the forward, norms have their running
            statistics and counters as before.
    """
    check_model(model)
    check_whole(model, "exact accumulation")
    parts = list(micro_batches)
    if not parts:
        raise UserError("accumulate got no micro-batches: give it at least one.")
    wrapped = model if isinstance(model, DistributedDataParallel) else None
    inner: nn.Module = model.module if isinstance(model, DistributedDataParallel) else model
    step = _Step(inner, len(parts), offload)
    with torch.enable_grad(), uncompiled():
        losses = step.forward(parts, loss)
        step.backward(losses)
    if wrapped is not None:
        _average_gradients(wrapped)
    return torch.stack([one.detach() for one in losses]).sum()


def accumulated_loss(model: nn.Module, micro_batches: list[Any], loss: Callable[[nn.Module, Any], Tensor]) -> Tensor:
    """Return the sum of the losses as `accumulate` does, before the backward, which is that of what is returned.

    For code that calls `.backward()` itself. It adds to `.grad` alone: `torch.autograd.grad` finds nothing.
    """
    step = _Step(model, len(micro_batches), None)
    with torch.enable_grad(), uncompiled():
        losses = step.forward(micro_batches, loss)
    anchor = torch.ones((), requires_grad=True)
    total: Tensor = _Later.apply(anchor, step, losses)  # type: ignore[no-untyped-call]
    return total


class _Later(torch.autograd.Function):
    """The sum of losses whose backward is that of a step."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, step: _Step, losses: list[Tensor]) -> Tensor:
        ctx.step, ctx.losses = step, losses
        return torch.stack([one.detach() for one in losses]).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        with torch.enable_grad(), uncompiled():
            ctx.step.backward(ctx.losses, grads[0])
        return None, None, None


class _Step:
    """The forward and the backward of all micro-batches."""

    def __init__(self, model: nn.Module, micro_batches: int, offload: bool | None) -> None:
        self.model, self.offload = model, offload
        self.norms = Norms.of(model, micro_batches)
        self.meetings: list[Meeting] = []
        held = [*model.parameters(), *model.buffers()]
        self.held = {tensor.untyped_storage().data_ptr() for tensor in held}

    def forward(self, parts: list[Any], loss: Callable[[nn.Module, Any], Tensor]) -> list[Tensor]:
        """Return the loss of each micro-batch, whose graph begins at the last norms."""

        def of(number: int) -> Callable[[Meet], Tensor]:
            def body(meet: Meet) -> Tensor:
                with AtNorms(meet, self.norms), self._saving():
                    return _scalar(loss(self.model, parts[number]), number)

            return body

        def apart(ended: int, waiting: int) -> UserError:
            return UserError(
                f"micro-batch {ended + 1} ends where micro-batch {waiting + 1} comes to another norm: exact "
                "accumulation needs all of them to go through the same norms in the same order."
            )

        masks = current_masks()
        if masks is not None and masks.given:
            raise UserError(
                "syncnorm.mask is open around syncnorm.accumulate: open it within the loss, with the mask of the "
                "micro-batch alone."
            )
        with _statistics_of_whole_steps(self.model), synchronised(self.model):
            return run_in_lockstep([of(number) for number in range(len(parts))], self._together, apart)

    def _together(self, arrivals: list[Arrival]) -> list[Place]:
        self.meetings.append(Meeting.at(arrivals))
        return self.meetings[-1].forward(arrivals, self.offload)

    def backward(self, losses: list[Tensor], gradient: Tensor | None = None) -> None:
        """Add the gradients of the sum of the losses, times `gradient`, to `.grad`."""
        with no_recomputation(self.model):
            for number, one in enumerate(losses, 1):
                if not one.requires_grad:
                    raise UserError(f"the loss of micro-batch {number} does not depend on anything that is trained.")
                torch.autograd.backward(one, gradient, retain_graph=True)
            while self.meetings:
                self.meetings.pop().backward()

    def _saving(self) -> AbstractContextManager[Any]:
        """Return what takes saved tensors to the host, where any may have to go."""
        away = any(goes_to_host(tensor, self.offload) for tensor in self.model.parameters())
        return saved_tensors_hooks(self._pack, _unpack) if away else nullcontext()

    def _pack(self, tensor: Tensor) -> Any:
        """Take a tensor that autograd saves to the host, unless it is there, or belongs to the model."""
        if not goes_to_host(tensor, self.offload) or tensor.untyped_storage().data_ptr() in self.held:
            return tensor
        return tensor.device, to_host(tensor)


@contextmanager
def _statistics_of_whole_steps(model: nn.Module) -> Iterator[None]:
    """Put running statistics and counters of norms back where they were if the forward fails."""
    norms = [m for m in model.modules() if m.training and isinstance(getattr(m, "running_mean", None), Tensor)]
    before = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise


def _unpack(kept: Any) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    device, tensor = kept
    back: Tensor = tensor.to(device, non_blocking=True)
    return back


def _scalar(loss: Any, number: int) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"the loss of micro-batch {number + 1} is {what}: return a scalar.")
    return loss.reshape(())


def _average_gradients(model: DistributedDataParallel) -> None:
    """Average .grad over the ranks of DDP; a parameter that a rank has not used counts with zero there."""
    group = model.process_group
    parameters = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    used = torch.tensor([float(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(used, group=group)
    shared = [parameter for parameter, count in zip(parameters, used.tolist(), strict=True) if count > 0]
    for dtype in {parameter.dtype for parameter in shared}:
        same = [parameter for parameter in shared if parameter.dtype is dtype]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in same])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        means = torch.split(flat, [parameter.numel() for parameter in same])
        for parameter, mean in zip(same, means, strict=True):
            parameter.grad = mean.view_as(parameter).clone()
