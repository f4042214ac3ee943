"""Convert a model's state to Flower's records and back, bit-identically; it is serialised only when its bytes are
read."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from syncnorm.errors import UserError

_FORMAT = "numpy.ndarray"
_NAMES = {
    dtype: str(dtype).removeprefix("torch.")
    for dtype in (
        *(torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    )
}
"""PyTorch's types that NumPy also has, by NumPy's name."""


class TensorArray(Array):
    """An `Array` that holds a tensor, and turns it into bytes when `data` is read or it is sent or copied.

    So a model passes between a server and clients in one process without being serialised, and any strategy can read
    it as arrays. Like Array's, `numpy()` copies, so that nobody writes into the tensor.
    """

    tensor: Tensor

    def __init__(self, tensor: Tensor) -> None:
        # The parent's __init__ would serialise at once.
        self.__dict__.update(
            tensor=tensor, dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape), stype=_FORMAT, _is_dirty=True
        )

    def __getattr__(self, name: str) -> Any:
        if name != "data":
            raise AttributeError(name)
        data = self.__dict__["data"] = Array.from_numpy_ndarray(self.tensor.cpu().numpy()).data
        return data

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("dtype", "shape", "stype", "data"):
            raise AttributeError(f"this array is a view of a tensor: make a new Array to change its {name}.")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Array):
            return NotImplemented
        return self._fields() == (other.dtype, other.shape, other.stype, other.data)

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[type[Array], tuple[str, tuple[int, ...], str, bytes]]:
        return Array, self._fields()

    def numpy(self) -> Any:
        """Return a copy as a NumPy array."""
        return self.tensor.cpu().numpy().copy()

    def deflate(self) -> bytes:
        """Return what Flower sends over a network: a plain Array."""
        return Array(*self._fields()).deflate()

    def _fields(self) -> tuple[str, tuple[int, ...], str, bytes]:
        return self.dtype, self.shape, self.stype, self.data


def to_record(state: Mapping[str, Tensor], *, copy: bool = True) -> ArrayRecord:
    """Return a model's state as an ArrayRecord, with the same names, order, shapes and types, including 0-d counters.

    Args:
        state: tensors by name, for example `model.state_dict()`.
        copy: False shares the tensors; they must not be modified afterwards.

    Raises:
        UserError: a type that NumPy, and so Flower's arrays, does not have, for example bfloat16.
    """
    record = ArrayRecord()
    for name, value in state.items():
        if value.dtype not in _NAMES:
            raise UserError(
                f"'{name}' is {value.dtype}, which Flower's arrays cannot hold: send the model as float32, for "
                "example with model.float()."
            )
        record[name] = TensorArray(value.detach().clone() if copy else value.detach())
    return record


def from_record(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the tensors of an ArrayRecord by name. They may share the record's memory: do not modify them."""
    return {
        name: array.tensor if isinstance(array, TensorArray) else torch.from_numpy(array.numpy())
        for name, array in record.items()
    }


def decoded(record: ArrayRecord) -> ArrayRecord:
    """Return the same record with its bytes decoded, so that many readers decode them only once."""
    result = ArrayRecord()
    for name, array in record.items():
        if not isinstance(array, TensorArray) and array.stype == _FORMAT and array.dtype in _NAMES.values():
            array = TensorArray(torch.from_numpy(array.numpy()))
        result[name] = array
    return result


def arrays_in(content: RecordDict, key: str = "arrays") -> ArrayRecord:
    """Return the ArrayRecord with the model: the only one of a message, or of several that under `key`.

    Raises:
        ValueError: none, or several under other keys.
    """
    found = {name: record for name, record in content.items() if isinstance(record, ArrayRecord)}
    if len(found) == 1:
        return next(iter(found.values()))
    if key in found:
        return found[key]
    raise ValueError(
        f"a message holds {len(found)} ArrayRecords, where one model is expected, or one under the key '{key}'."
    )
