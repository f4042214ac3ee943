"""The result of `load`: normalised samples as tensors, with labels, split into training, validation and test."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Literal

import torch
from torch import Tensor

from syncnorm.data.mapped import chunks, moved
from syncnorm.data.raw import Groups
from syncnorm.tasks import task_named

Scale = Literal["own", "fixed"]
"""own: normalise by the mean and standard deviation of the training samples; fixed: by numbers that do not depend on
them."""
KINDS = {3: "images", 2: "signals", 1: "feature vectors"}
"""Words for samples, by their number of dimensions."""
CLASSES = "classification"
LISTED = 5
"""Maximum number of class names in a summary."""


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Images, signals or feature vectors, and labels, split into training, validation and test.

    `train_x`, `validation_x`, `test_x`: float32, images (N, C, H, W), signals (N, C, L) or feature vectors (N, F),
    normalised with the mean and standard deviation of each channel over the training samples alone, or, with
    `scale="fixed"`, images with 0.5 and 0.5 and signals with their `centre` and `unit`; all parts use the same
    numbers. `train_y`, `validation_y`, `test_y`: int64 (N,), values 0 .. classes-1; with another task than
    classification they are its targets (N, ...), and `classes` is the number of outputs. Without `data.validation`
    there are no validation samples. `note` is a one-line description with the source.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    class_names: tuple[str, ...]
    note: str = ""
    changes: tuple[str, ...] = ()
    """Conversions and omissions during loading, one phrase each."""
    natural: Groups | None = None
    """The natural client (site, writer, ...) of each sample, if the data set has this column."""
    domain: Groups | None = None
    """The domain of each sample, if the data set has this column in addition to `natural`."""
    scaled: bool = True
    """Whether the samples are normalised; False if the fixed scale was requested but the data have none."""
    task: str = "classification"
    """The task whose targets `train_y` and `test_y` are."""
    validation_x: Tensor = field(default_factory=lambda: torch.zeros(0))
    validation_y: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    origin: Tensor | None = None
    """What each test sample shows, e.g. the number of its digit: int64 (N_test,), on the CPU. None: every sample is
    its own."""
    train_origin: Tensor | None = None
    """The same of the training samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (C, H, W) of an image, (C, L) of a signal, (F,) of a feature vector."""
        return tuple(self.train_x.shape[1:])

    @cached_property
    def strata(self) -> Tensor:
        """What stratification and label skew go by in the training samples: int64 (N,), the labels of classes."""
        return task_named(self.task).stratify(self.train_y, self.test_y)[0]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the content, see `syncnorm.data.fingerprint`."""
        return content_hash(
            (self.train_x, self.train_y, self.test_x, self.test_y, self.validation_x, self.validation_y),
            (self.natural, self.domain),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Dataset":
        """Return the data set on `device`, with samples and fractional targets (but not labels) as `dtype`."""
        return replace(
            self,
            train_x=moved(self.train_x, device, dtype),
            train_y=targets_to(self.train_y, device, dtype),
            test_x=moved(self.test_x, device, dtype),
            test_y=targets_to(self.test_y, device, dtype),
            validation_x=moved(self.validation_x, device, dtype),
            validation_y=targets_to(self.validation_y, device, dtype),
        )

    def summary(self) -> str:
        """Return one line: numbers of samples and classes, and changes during loading."""
        size = sizes(self.train_y, self.validation_y, self.test_y)
        said = f"{self.name}: {size} {KINDS.get(len(self.shape), 'samples')} {self.shape}, "
        said += targets_in_words(self.task, self.train_y, self.class_names)
        if self.natural:
            said += f", {len(self.natural.names)} natural clients"
        if self.domain:
            said += f", {len(self.domain.names)} domains"
        never = untrained(self.train_y, self.test_y, self.class_names) if self.task == CLASSES else []
        return "; ".join((said, *never, *self.changes))

    def __repr__(self) -> str:
        return f"<Dataset {self.summary()}>"


def targets_to(y: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """Return targets on `device`; fractional ones as `dtype`, whole numbers as they are."""
    return y.to(device, dtype) if y.is_floating_point() else y.to(device)


def targets_in_words(task: str, y: Tensor, names: Sequence[str]) -> str:
    """Return the number of classes and of samples in each; of another task, the number of outputs and its name."""
    if task == CLASSES:
        return f"{len(names)} classes, {spread(y, len(names))}"
    return f"{len(names)} output{'s' * (len(names) > 1)} for {task}"


def sizes(train_y: Tensor, validation_y: Tensor, test_y: Tensor) -> str:
    """Return the numbers of samples in words, e.g. "1,437 training and 360 test"."""
    validation = f", {len(validation_y):,} validation" if len(validation_y) else ""
    return f"{len(train_y):,} training{validation} and {len(test_y):,} test"


def spread(labels: Tensor, classes: int) -> str:
    """Return the range of samples per class, e.g. "96 to 104 a class"."""
    counts = torch.bincount(labels, minlength=classes)
    few, many = int(counts.min()), int(counts.max())
    return f"{few:,} a class" if few == many else f"{few:,} to {many:,} a class"


def untrained(train_y: Tensor, test_y: Tensor, class_names: Sequence[str]) -> list[str]:
    """Return a phrase about classes that only the test split has; empty if there are none."""
    trained, tested = (torch.bincount(y, minlength=len(class_names)) > 0 for y in (train_y, test_y))
    names = [class_names[index] for index in (tested & ~trained).nonzero()[:, 0].tolist()]
    if not names:
        return []
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return [f"only in the test, so never learned: class{'es' * (len(names) > 1)} {', '.join(names[:LISTED])}{more}"]


def content_hash(tensors: Iterable[Tensor], columns: Iterable[Groups | None] = ()) -> str:
    """Return a hash, 16 hex digits, of tensors' shapes and contents, and of columns. Floats are hashed as float32."""
    digest = sha256()
    for tensor in tensors:
        dtype = torch.float32 if tensor.is_floating_point() else torch.int64
        digest.update(f"{dtype} {tuple(tensor.shape)}\n".encode())
        for rows in chunks(len(tensor), tensor[:1].nbytes):
            digest.update(tensor[rows].detach().to("cpu", dtype).contiguous().numpy().data)
    for column in columns:
        digest.update(repr(column and column.names).encode())
        for part in column[1:] if column else ():
            digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
