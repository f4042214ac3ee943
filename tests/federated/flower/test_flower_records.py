"""A state goes through Flower's records and comes back bit for bit; lazily inside a process, plainly outside."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from torch import nn

from syncnorm.errors import UserError
from syncnorm.federated.flower.records import TensorArray, arrays_in, decoded, from_record, to_record


def state() -> dict[str, torch.Tensor]:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2).double())
    model[:2](torch.randn(4, 1, 5, 5))
    return model.state_dict()


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert list(left) == list(right)
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        assert value.shape == right[name].shape
        assert torch.equal(value, right[name])


def through_flower(record: ArrayRecord) -> ArrayRecord:
    """Take a record apart into what Flower sends over a network, and put it together again."""
    arrays = {}
    for array in record.values():
        chunks = {key: type(chunk).inflate(chunk.deflate()) for key, chunk in array.children.items()}
        arrays[array.object_id] = Array.inflate(array.deflate(), chunks)
    return ArrayRecord.inflate(record.deflate(), arrays)


@pytest.mark.parametrize(
    "way",
    [
        lambda record: record,
        lambda record: pickle.loads(pickle.dumps(record)),
        deepcopy,
        through_flower,
        decoded,
        lambda record: decoded(pickle.loads(pickle.dumps(record))),
    ],
    ids=["as it is", "pickle", "deepcopy", "network", "decoded", "decoded after pickle"],
)
def test_a_state_comes_back_bit_for_bit(way) -> None:
    before = state()
    assert before["1.num_batches_tracked"].shape == ()
    after = from_record(way(to_record(before)))
    assert_same(before, after)
    assert after["1.num_batches_tracked"].item() == 1


def test_flower_reads_it_as_its_own() -> None:
    before = state()
    ours, flowers = to_record(before), ArrayRecord(before)
    assert ours == flowers
    assert ours.object_id == flowers.object_id
    assert_same(dict(ours.to_torch_state_dict()), before)
    assert [a.tolist() for a in ours.to_numpy_ndarrays()] == [a.tolist() for a in flowers.to_numpy_ndarrays()]
    assert ours.count_bytes() == flowers.count_bytes()
    assert_same(from_record(flowers), before)


def test_nothing_is_serialised_until_bytes_are_read() -> None:
    record = to_record(state())
    from_record(record), record.to_torch_state_dict(), record.to_numpy_ndarrays()
    assert not any("data" in vars(array) for array in record.values())
    assert all(array.data for array in record.values())


def test_a_record_is_a_snapshot_and_readers_do_not_share() -> None:
    value = torch.zeros(3)
    record = to_record({"w": value})
    value += 1
    assert record["w"].numpy().tolist() == [0, 0, 0]
    record["w"].numpy()[:] = 7
    record.to_torch_state_dict()["w"].fill_(7)
    assert from_record(record)["w"].tolist() == [0, 0, 0]
    shared = to_record({"w": value}, copy=False)
    assert from_record(shared)["w"].data_ptr() == value.data_ptr()


def test_a_pickle_holds_plain_arrays() -> None:
    assert {type(a) for a in pickle.loads(pickle.dumps(to_record(state()))).values()} == {Array}


def test_what_is_no_tensor_stays_as_it_is() -> None:
    words = Array(np.array(["a", "b"]))
    other = Array("float32", (1,), "another.format", b"1234")
    result = decoded(ArrayRecord({"words": words, "other": other}))
    assert result["words"] == words
    assert result["other"] == other


def test_bfloat16_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"'0.weight' is torch.bfloat16.*float32"):
        to_record(nn.Sequential(nn.Linear(2, 2)).bfloat16().state_dict())


def test_a_tensor_array_cannot_be_changed_behind_its_tensor() -> None:
    array = TensorArray(torch.ones(2))
    with pytest.raises(AttributeError, match="make a new Array"):
        array.data = b""


def test_one_model_a_message() -> None:
    record = to_record({"w": torch.ones(1)})
    assert arrays_in(RecordDict({"a": record, "m": MetricRecord({"x": 1})})) is record
    for content in (RecordDict(), RecordDict({"a": record, "b": record})):
        with pytest.raises(ValueError, match="ArrayRecords"):
            arrays_in(content)
