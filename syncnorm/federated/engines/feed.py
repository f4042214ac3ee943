"""The samples of local steps, gathered where the data lie and augmented, by this process or by others ahead of it."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from syncnorm.federated.local import Local, Task, images

Job = Sequence[tuple[Task, int]]
"""The clients that make a step together, and the number of each one's step."""
Batch = tuple[Tensor, Tensor]
"""Samples (B, R, ...) and targets (R, B, ...) of R clients."""


class Feed:
    """The batches of jobs, in their order, on the device that trains.

    Args:
        local: the round's settings; its `workers` processes make the batches, or, if 0, this process does.
        x, y: the pool of samples and targets.
        jobs: what is trained, in the order in which it is taken.
    """

    def __init__(self, local: Local, x: Tensor, y: Tensor, jobs: Sequence[Job]) -> None:
        parameter = next(local.classifier.model.parameters(), x)
        self._device, self._jobs = parameter.device, _Jobs(local, x, y, jobs)
        self._made = self._loaded(local.workers) if local.workers and jobs else None
        self._next = 0

    def take(self, place: int) -> Batch:
        """Return the batch of the job at `place`; those that were not taken before it are dropped."""
        if self._made is None:
            x, y = self._jobs[place]
        else:
            for _ in range(self._next, place):
                next(self._made)
            self._next = place + 1
            x, y = next(self._made)
        return x.to(self._device, non_blocking=True), y.to(self._device, non_blocking=True)

    def _loaded(self, workers: int) -> Iterator[Batch]:
        loader: DataLoader[Batch] = DataLoader(
            self._jobs,
            batch_size=None,
            num_workers=min(workers, len(self._jobs)),
            pin_memory=torch.cuda.is_available(),
            multiprocessing_context="fork",  # the pool is not copied
            generator=torch.Generator(),  # else it would draw from the stream of the model's random layers
        )
        return iter(loader)


class _Jobs(Dataset[Batch]):
    def __init__(self, local: Local, x: Tensor, y: Tensor, jobs: Sequence[Job]) -> None:
        self._local, self._x, self._y, self._list = local, x, y, jobs

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, place: int) -> Batch:
        job, x, y = self._list[place], self._x, self._y
        index = [task.batches[step].to(x.device) for task, step in job]
        if self._local.augment == "none":
            samples = x[torch.stack(index, 1)]
        else:
            samples = torch.stack([images(self._local, x, task, step) for task, step in job], 1)
        return samples, y[torch.stack(index)]
