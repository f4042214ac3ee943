"""A memory of a stream, balanced over predicted classes, for statistics of streams that are not shuffled.

model = syncnorm.convert(model, "iabn")
memory = syncnorm.surgery.BalancedMemory(64)
for x in batches:
    logits = model.eval()(x)
    memory.add(x, logits.argmax(1))
    model.train()(memory.samples())             # running statistics follow the memory, not the stream
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.errors import UserError


class BalancedMemory:
    """Prediction-balanced reservoir sampling: up to `capacity` samples of a stream, balanced over predicted classes.

    Samples are stored while there is room. After that, let a sample have predicted class c, of which n_c samples have
    come (this one included) and m_c are stored:

        if c is not among the classes with the most stored samples, it replaces a random sample of one of those
        classes, chosen at random; if it is, it replaces a random sample of its own class with probability m_c / n_c,
        and is dropped otherwise.

    So the memory tends to equally many samples of each class; of a class that is always the largest, it holds a
    uniform sample of all that came. Random numbers come from PyTorch's CPU generator.

    Source: NOTE (Gong, Jeong, Kim, Kim, Shin & Lee, arXiv 2208.05117), after its authors' code.

    Raises:
        UserError: a capacity below 1; predictions that are not one integer per sample; samples of different shapes.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise UserError(f"capacity is {capacity}: a memory holds at least 1 sample.")
        self.capacity = capacity
        self._held: dict[int, list[Tensor]] = {}
        self._come: dict[int, int] = {}

    def add(self, samples: Tensor, predicted: Tensor) -> None:
        """Offer samples (N, ...) with predicted classes (N,) to the memory, one after the other."""
        if predicted.shape != samples.shape[:1] or predicted.is_floating_point():
            raise UserError(
                f"BalancedMemory got {len(samples)} samples and predictions of shape {tuple(predicted.shape)} and "
                f"type {predicted.dtype}: give one integer a sample, for example logits.argmax(1)."
            )
        held = next((rows[0] for rows in self._held.values() if rows), None)
        if held is not None and held.shape != samples.shape[1:]:
            raise UserError(
                f"BalancedMemory holds samples of shape {tuple(held.shape)} and got some of shape "
                f"{tuple(samples.shape[1:])}: use a memory for each."
            )
        for sample, label in zip(samples.detach().clone(), predicted.tolist(), strict=True):
            self._add(sample, label)

    def samples(self) -> Tensor:
        """Return the stored samples, (n, ...), class by class; an empty memory raises `UserError`."""
        rows = [row for own in self._held.values() for row in own]
        if not rows:
            raise UserError("BalancedMemory is empty: add samples first.")
        return torch.stack(rows)

    def classes(self) -> dict[int, int]:
        """Return the number of stored samples of each predicted class."""
        return {label: len(rows) for label, rows in self._held.items() if rows}

    def _add(self, sample: Tensor, label: int) -> None:
        own = self._held.setdefault(label, [])
        self._come[label] = self._come.get(label, 0) + 1
        if sum(map(len, self._held.values())) < self.capacity:
            own.append(sample)
            return
        most = max(map(len, self._held.values()))
        largest = [rows for rows in self._held.values() if len(rows) == most]
        if len(own) < most:
            crowded = largest[_draw(len(largest))]
            crowded.pop(_draw(len(crowded)))
            own.append(sample)
        elif torch.rand(()) <= len(own) / self._come[label]:
            own[_draw(len(own))] = sample


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
