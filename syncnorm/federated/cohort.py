"""The batched engine: the clients of a round make their steps together, as one computation.

Parameters and buffers are stacked, one row a client, and `torch.vmap` runs the model over the rows. Updates are those
of the plain engine up to rounding. Clients are independent of each other within a round, so a step need not wait for
its turn: what is batched is any clients whose next batches have the same size. (Padding a short batch would change
its statistics.)
"""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call

from syncnorm.errors import UserError
from syncnorm.federated import loop
from syncnorm.federated.cohort_layers import ClientsTogether, fold, unfold
from syncnorm.federated.cohort_optimizers import STACKED, Rows, put
from syncnorm.federated.local import Local, Step, Task, Update, extra_terms, images
from syncnorm.norms import adaptive_gradient_clip

TOGETHER = 64
"""Clients that are batched at most: more need memory and are hardly faster."""


def train(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
    """Train every task's client on its part of the pool `x` (N, C, H, W), `y` (N,); updates in the order of tasks.

    Where the batched computation raises, the plain engine trains the same tasks, so that a client that fails does so
    alone. A model that only that engine can run is warned of. With `local.synchronised` there is no plain engine, and
    all clients fail together.

    Raises:
        UserError: a model that draws random numbers (dropout): clients would not draw their own. Clients that are to
            share the statistics of their first batches and have batches of different size.
    """
    together = len(tasks) if local.synchronised else TOGETHER
    try:
        return [
            update
            for start in range(0, len(tasks), together)
            for update in _Cohort(local, tasks[start : start + together]).train(x, y)
        ]
    except UserError:
        raise
    except Exception as error:
        if "randomness" in str(error):  # vmap's own error
            raise UserError(
                "the model draws random numbers in training (as dropout does), which clients in one batched step "
                "would not draw as they do alone: choose the engine loop."
            ) from error
        if local.synchronised:
            return [Update(task.client, {}, error=f"{type(error).__name__}: {error}") for task in tasks]
        updates = loop.train(local, x, y, tasks)
        if not any(update.error for update in updates):
            warnings.warn(
                f"the clients could not train in one batched step ({type(error).__name__}: {error}): they trained one "
                "by one, as the engine loop does at once.",
                stacklevel=2,
            )
        return updates


class _Cohort:
    """The clients of some tasks, stacked."""

    def __init__(self, local: Local, tasks: Sequence[Task]) -> None:
        # Those with most steps first: the clients of a group are then mostly neighbours, and their rows a slice.
        self._order = sorted(range(len(tasks)), key=lambda place: -len(tasks[place].batches))
        self._tasks = [tasks[place] for place in self._order]
        self._local = local
        self._model = local.classifier.model
        self._step = Step(local.classifier)
        self._state = {
            name: _stack([task.state[name] for task in self._tasks], like.detach())
            for name, like in chain(self._model.named_parameters(), self._model.named_buffers())
        }
        trained = {name: self._state[name] for name, p in self._model.named_parameters() if p.requires_grad}
        self._trained = frozenset(trained)
        self._received = {name: trained[name].clone() for name in local.shared} if local.prox else {}
        self._correction = _stack_some([task.correction for task in self._tasks], trained)
        momentum = _stack_some([task.momentum for task in self._tasks], trained)
        self._optimizer = STACKED[local.optim.name](local.optim, trained, momentum)

    def train(self, x: Tensor, y: Tensor) -> list[Update]:
        """Make all steps, and return the updates in the order in which the tasks came."""
        total = torch.zeros(len(self._tasks), dtype=x.dtype, device=x.device)
        for group, steps in _schedule(self._tasks, self._local.synchronised):
            rows = _rows(group, x.device)
            synchronised = self._local.synchronised and steps[0] == 0
            chosen = [(self._tasks[row], step) for row, step in zip(group, steps, strict=True)]
            loop.set_mode(self._model, chosen[0][0].running[steps[0]])
            total[rows] += self._make_step(rows, self._gather(x, chosen), y[_index(chosen)], synchronised)
        return self._updates(total.tolist())
