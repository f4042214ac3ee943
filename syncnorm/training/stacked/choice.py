"""Whether runs train in one computation: what forbids it, and which way a few steps show to be faster."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from statistics import median
from typing import Any, TypeVar

import torch

from syncnorm.config import Execution, Run, silent, stack_of, why_alone
from syncnorm.surgery.layers.replace import copied
from syncnorm.training.batches import Batches
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.training.lightning.trainer import run_trainer
from syncnorm.training.stacked.models import keeping
from syncnorm.training.stacked.stack import Stack
from syncnorm.training.stacked.train import Member, NotStacked, Together, computing, dealt, in_one_place

Some = TypeVar("Some", bound=Member)

PROBED_STEPS = 6
WARM_UP = 2
"""Of these, steps that do not count."""
_known: dict[tuple[str, int], str] = {}
"""Why runs train one by one, by what is alike in them and the number that was handed out together, 0 for any number;
empty where they do not."""


def why_not(run: Run, together: int) -> str:
    """Return why a run trains by itself, as far as this process knows; empty if it may train with so many."""
    return why_alone(run) or _known.get((stack_of(run), 0), "") or _known.get((stack_of(run), together), "")


def train_together(members: Sequence[Some], execution: Execution) -> list[Some] | str:
    """Train runs in one computation; return those that were trained, or why none was.

    None is trained if the model cannot be stacked, or if the execution asks for the faster way and that is one run
    after another. Members that are not like the first, or elsewhere by their checkpoints, are left out.
    """
    first = members[0]
    there, states = in_one_place([one for one in members if one.like(first)])
    key = (stack_of(first.run), len(execution.together))
    if len(there) < 2:
        return ""
    for layer in keeping(first.classifier.model).values():
        _known[key[0], 0] = f"a layer ({type(layer).__name__}) keeps more than parameters and buffers"
        return _known[key[0], 0]
    try:
        if execution.if_faster and key not in _known:
            _known[key] = slower_together(there)  # once for all such stacks
        if why := _known.get(key):
            return why
        Together(there, states, execution).train()
    except NotStacked as error:
        _known[key[0], 0] = str(error)
        return str(error)
    return there


def slower_together(members: Sequence[Member]) -> str:
    """Return in words how much faster the runs train one by one; empty if they do not.

    Copies make a few steps each way, twice; the faster time of a way counts.
    """
    alone = min(seconds_alone(members[0]) for _ in range(2))
    ratio = min(seconds_together(members) for _ in range(2)) / (len(members) * alone)
    return f"{len(members)} at once would have taken {ratio:.2f} times as long" if ratio >= 1 else ""


def seconds_alone(member: Member) -> float:
    """Return seconds a step of a run by itself, under Lightning's Trainer."""
    run = replace(member.run, optim=replace(member.run.optim, epochs=1))
    twin, place = _twin(member), {"accelerator": _device(member).type, "devices": 1}
    with torch.random.fork_rng():
        run_trainer(run, twin, _Few(member.batches), Execution(report=silent), **place)
    return _each(twin.at)


def seconds_together(members: Sequence[Member]) -> float:
    """Return seconds a step of all runs."""
    stack, at = Stack([_twin(one) for one in members], PROBED_STEPS), []
    for x, y in islice(dealt(members, 0, 0), PROBED_STEPS):
        with computing():
            stack.step(x, y, last=True)
        at.append(now(x[0].device))
    return _each(at)


def _each(at: Sequence[float]) -> float:
    """Return the median of what lies between these times, without the first ones."""
    steps = [after - before for before, after in pairwise(at)]
    return median(steps[WARM_UP:] or steps or [0.0])


def now(device: torch.device) -> float:
    """Return a time in seconds: of this process's work on a CPU, since others may work there as well; else of day."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _device(member: Member) -> torch.device:
    return next(member.classifier.model.parameters()).device


def _twin(member: Member) -> "_Timed":
    run = member.run
    return _Timed(copied(member.classifier.model), optim=run.optim, task=run.task, precision=run.precision)


class _Timed(Classifier):
    """A classifier that remembers when its steps ended."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.at: list[float] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.at.append(now(batch[0].device))


class _Few(Batches):
    """The first batches of others."""

    def __init__(self, batches: Batches) -> None:
        super().__init__()
        self._batches, self.steps = batches, min(batches.steps, PROBED_STEPS)

    def deal(self, epoch: int, first: int, every: int = 1) -> Iterator[Any]:
        return islice(self._batches.deal(epoch, first, every), self.steps)
