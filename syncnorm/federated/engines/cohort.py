"""The batched engine: the clients of a round train together in one computation.

Parameters and buffers are stacked, one row per client, and `torch.vmap` runs the model over the rows. Updates equal
the plain engine's up to rounding. Within a round clients are independent, so any clients whose next batches have the
same size can make a step together. (Padding a short batch would change its statistics.)
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated.engines import loop
from syncnorm.federated.engines.feed import Feed
from syncnorm.federated.engines.loop import set_mode
from syncnorm.federated.engines.memory import check_without_memory
from syncnorm.federated.local import Local, Task, Update
from syncnorm.surgery import adaptive_gradient_clip
from syncnorm.training.precision import PRECISIONS
from syncnorm.training.stacked.layers import ModelsTogether, fold, unfold
from syncnorm.training.stacked.models import Rowwise, entries_of, gradients_of, stack
from syncnorm.training.stacked.optimizers import STACKED, Rates, Rows, put

TOGETHER = 64
"""Largest number of clients in one batch; more would need more memory and are hardly faster."""


def train(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
    """Train every task's client on its part of the pool `x` (N, C, H, W), `y` (N,); return updates in task order.

    If the batched computation raises, the plain engine trains the same tasks, so that only the faulty client fails.
    If all of them succeed there, a warning says so.

    Raises:
        UserError: a model that draws random numbers (dropout): clients would not draw their own; one whose layers
            keep more than parameters and buffers. If clients share
            statistics, which the plain engine cannot do: any error of the batched computation, and first batches of
            different sizes.
    """
    try:
        return train_together(local, x, y, tasks)
    except UserError:
        raise
    except Exception as error:
        if local.over_ranks and local.algorithm.shares_statistics and "vmap" not in str(error):
            raise  # perhaps from a rank that is gone
        if local.algorithm.shares_statistics:
            raise UserError(
                "clients that share the statistics of a step make it in one batched computation, or not at all, and "
                f"with this model it fails ({type(error).__name__}: {error}): choose another method."
            ) from error
        updates = loop.train(local, x, y, tasks)
        if not any(update.error for update in updates):
            warnings.warn(
                f"the clients could not train in one batched step ({type(error).__name__}: {error}): they trained "
                "one by one, as the engine loop does at once.",
                stacklevel=2,
            )
        return updates


def train_together(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
    """Do what `train` does, but raise whatever the batched computation raises."""
    check_without_memory(local.classifier.model)
    together = len(tasks) if local.algorithm.shares_statistics else TOGETHER
    blocks = [tasks[start : start + together] for start in range(0, len(tasks), together)]
    try:
        return [update for block in blocks for update in _Cohort(local, block).train(x, y)]
    except RuntimeError as error:
        if "randomness" not in str(error):  # vmap's word for it
            raise
        raise UserError(
            "the model draws random numbers in training (as dropout does), and clients in one batched step would not "
            "draw what they draw alone: choose the engine loop."
        ) from error
    finally:
        local.classifier.forget_losses()


class _Cohort:
    """The clients of some tasks, stacked."""

    def __init__(self, local: Local, tasks: Sequence[Task]) -> None:
        # Clients with the most steps first: a group's clients are then mostly neighbours, and their rows a slice.
        self._order = sorted(range(len(tasks)), key=lambda place: -len(tasks[place].batches))
        self._tasks = [tasks[place] for place in self._order]
        self._local = local
        self._model = local.classifier.model
        self._rowwise = Rowwise(local.classifier)
        self._state = {
            name: stack([task.state[name] for task in self._tasks], like.detach())
            for name, like in entries_of(self._model).items()
        }
        self._trained = {name: self._state[name] for name, p in self._model.named_parameters() if p.requires_grad}
        self._received: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        if local.has_term:
            self._received = {name: self._state[name].clone() for name in local.shared}
            self._inputs = _stack_all([task.inputs for task in self._tasks])
        momentum = self._stack_some([task.momentum for task in self._tasks])
        self._optimizer = STACKED[local.optim.name](Rates.of(local.optim), self._trained, momentum)

    def train(self, x: Tensor, y: Tensor) -> list[Update]:
        """Make all steps, and return the updates in task order."""
        groups = list(step_groups(self._tasks, self._local.algorithm.shares_statistics))
        jobs = [[(self._tasks[row], step) for row, step in zip(*group, strict=True)] for group in groups]
        feed, device = Feed(self._local, x, y, jobs), next(iter(self._state.values()), x).device
        losses = torch.zeros(len(self._tasks), dtype=x.dtype, device=device)
        for number, (group, steps) in enumerate(groups):
            samples, labels = feed.take(number)
            set_mode(self._model, self._tasks[group[0]].running[steps[0]])
            rows = _rows(group, device)
            losses[rows] += labels.shape[1] * self._make_step(
                rows,
                unfold(fold(samples), len(group)),
                labels,
                # The first step always goes through vmap, which refuses models that draw random numbers.
                alone=len(group) == 1 and number > 0,
                synchronised=self._local.algorithm.shares_statistics and steps[0] == 0,
            )
        return self._updates(losses.tolist())

    def _make_step(self, rows: Rows, x: Tensor, y: Tensor, alone: bool, synchronised: bool) -> Tensor:
        """Make a step of the clients `rows` with x (B, R, C, H, W) and y (R, B); return their data losses (R,)."""
        state = {name: stacked[rows] for name, stacked in self._state.items()}
        leaves = {name: state[name].detach().requires_grad_() for name in self._trained}
        if alone:
            losses = self._rowwise.loss(state | leaves, x, y)
        else:
            together = ModelsTogether(synchronised, self._local.over_ranks)
            losses = self._rowwise.losses(state | leaves, x, y, together)
        objective, scale = (
            losses.sum() + self._local_terms(leaves, rows),
            PRECISIONS[self._local.classifier.precision],
        )
        gradients = gradients_of(objective, leaves, scale.loss_scale)
        with torch.no_grad():
            if self._local.clip:
                clip = partial(adaptive_gradient_clip, clip=self._local.clip)
                gradients = torch.vmap(clip)({name: state[name] for name in gradients}, gradients)
            for name, gradient in gradients.items():
                self._optimizer.step(name, state[name], gradient, rows)
            for name, value in state.items():
                put(self._state[name], rows, value)
        return losses.detach()

    def _local_terms(self, parameters: Mapping[str, Tensor], rows: Rows) -> Tensor | float:
        """Return the sum of the algorithm's term over the clients `rows`."""
        if not self._local.has_term:
            return 0.0
        shared = {name: parameters[name] for name in self._local.shared}
        received, inputs = (
            {name: stacked[rows] for name, stacked in some.items()} for some in (self._received, self._inputs)
        )
        return torch.vmap(self._local.algorithm.local_term)(shared, received, inputs).sum()

    def _stack_some(self, entries: Sequence[Mapping[str, Tensor] | None]) -> dict[str, Tensor]:
        """Stack entries by parameter; zeros for a client that has none."""
        names = sorted({name for own in entries for name in own or {}})
        return {
            name: stack([(own or {}).get(name, torch.zeros_like(like)) for own in entries], like)
            for name in names
            for like in [self._trained[name][0]]
        }

    def _updates(self, losses: list[float]) -> list[Update]:
        momentum = self._optimizer.momentum()
        updates = {}
        for row, (place, task, loss) in enumerate(zip(self._order, self._tasks, losses, strict=True)):
            updates[place] = Update(
                task.client,
                {name: stacked[row] for name, stacked in self._state.items()},
                loss / sum(len(index) for index in task.batches),
                None if task.momentum is None else {name: stacked[row] for name, stacked in momentum.items()},
            )
        return [updates[place] for place in range(len(updates))]


def step_groups(tasks: Sequence[Task], synchronised: bool) -> Iterator[tuple[list[int], list[int]]]:
    """Yield groups of clients that make a step together, until no step is left: rows of tasks, and each one's step.

    Clients of a group have batches of the same size and the same normaliser. The group with the client that has the
    most steps left goes first, since that client ends the round. With `synchronised`, all clients make the first step
    together.
    """
    at = [0] * len(tasks)
    while True:
        groups: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for row, task in enumerate(tasks):
            if at[row] < len(task.batches):
                groups[len(task.batches[at[row]]), task.running[at[row]]].append(row)
        if not groups:
            return
        if synchronised and not any(at):
            check_first_step(set(groups))
        group = max(groups.values(), key=lambda rows: max(len(tasks[row].batches) - at[row] for row in rows))
        yield group, [at[row] for row in group]
        for row in group:
            at[row] += 1


def check_first_step(groups: set[tuple[int, bool]]) -> None:
    """Raise `UserError` if clients cannot make their first step together: the sizes of their first batches, and
    whether running statistics normalise these."""
    if len(groups) > 1:
        sizes = ", ".join(str(size) for size in sorted({size for size, _ in groups}))
        raise UserError(
            f"the clients' first batches have {sizes} samples, and a step that shares statistics needs as many on "
            "every client: lower batch to the smallest client's number of samples, or set equal_size."
        )


def _rows(group: list[int], device: torch.device) -> Rows:
    """Return these rows as a slice if they are contiguous, since a view saves a copy."""
    if group == list(range(group[0], group[-1] + 1)):
        return slice(group[0], group[-1] + 1)
    return torch.tensor(group, device=device)


def _stack_all(inputs: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the clients' tensors by name; clients with different names raise `ValueError`."""
    for own in inputs:
        if own.keys() != inputs[0].keys():
            raise ValueError("the algorithm's client_inputs have other names for one client than for another")
    return {name: stack([own[name] for own in inputs], like) for name, like in inputs[0].items()}
