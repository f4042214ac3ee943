"""What clients keep between rounds: the same from memory and from disk, and no more of either than was touched."""

import errno
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import PLAIN, bits, every_kind_of_tensor, play, small_run

from syncnorm.config import Optim
from syncnorm.errors import UserError
from syncnorm.federated.client.states import ClientStates, InMemory, OnDisk, kept_by

STORES: dict[str, Callable[[], ClientStates]] = {"memory": InMemory, "disk": lambda: OnDisk(10)}


@pytest.mark.parametrize("store", STORES)
def test_every_kind_of_tensor_comes_back_bit_for_bit(store: str) -> None:
    states = STORES[store]()
    assert states.clients() == []
    assert all(states.get(client) is None for client in range(10))
    for client in (7, 0, 9):
        states.put(client, every_kind_of_tensor(client))
    states.put(7, every_kind_of_tensor(70))
    assert states.clients() == [0, 7, 9]
    for client, kept in ((0, 0), (7, 70), (9, 9)):
        found, expected = states.get(client), every_kind_of_tensor(kept)
        assert found is not None
        assert list(found) == list(expected)
        assert bits(found) == bits(expected)
        for name, value in found.items():
            assert value.dtype == expected[name].dtype, name
            assert value.shape == expected[name].shape, name
    assert states.get(1) is None
    assert [client for client, _ in kept_by(states)] == [0, 7, 9]
    states.drop(7)
    states.drop(3)  # it has none
    assert [client for client in range(10) if states.has(client)] == states.clients() == [0, 9]
    assert states.get(7) is None
    states.put(7, every_kind_of_tensor(1))
    assert bits(states.get(7) or {}) == bits(every_kind_of_tensor(1))


@pytest.mark.parametrize("store", STORES)
def test_a_store_keeps_values_and_not_what_they_were_cut_from(store: str) -> None:
    states = STORES[store]()
    stack = torch.zeros(1000, 3)
    states.put(2, {"row": stack[5]})
    stack.add_(1.0)
    found = states.get(2)
    assert found is not None
    assert found["row"].tolist() == [0.0, 0.0, 0.0]
    assert found["row"].untyped_storage().nbytes() == 12


def test_only_records_that_are_touched_take_memory_or_disk(tmp_path: Path) -> None:
    clients = 1_000_000
    own = {"state.running_mean": torch.randn(1000), "round": torch.tensor(3)}
    tracemalloc.start()
    states = OnDisk(clients, tmp_path)
    for client in (0, 123_456, clients - 1):
        states.put(client, own)
    assert states.clients() == [0, 123_456, clients - 1]
    found = states.get(123_456)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is not None
    assert torch.equal(found["state.running_mean"], own["state.running_mean"])
    assert states.get(5) is None
    assert list(tmp_path.rglob("*")) == []  # so nothing is left, however the process ends
    file = os.fstat(states._file.fileno())
    assert file.st_size == clients * 4008
    assert file.st_blocks * 512 < 1 << 20
    assert peak < 4 << 20  # a byte a client, and some records


def test_a_full_disk_is_a_mistake_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states, write, room = OnDisk(4, tmp_path), os.pwrite, [10]

    def to_a_full_disk(file: int, data: memoryview, at: int) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(file, data[: room[0]], at)
        room[0] -= done
        return done

    states.put(0, {"a": torch.arange(3.0)})
    monkeypatch.setattr(os, "pwrite", to_a_full_disk)
    with pytest.raises(UserError, match=f"4 clients keep .* in {tmp_path}.* failed .No space left on device.: make"):
        states.put(1, {"a": torch.ones(3)})
    found = states.get(0)
    assert found is not None
    assert found["a"].tolist() == [0.0, 1.0, 2.0]
    assert not states.has(1)
    room[0] = 100
    states.put(1, {"a": torch.ones(3)})
    assert states.clients() == [0, 1]
    with pytest.raises(UserError, match="No such file or directory"):
        OnDisk(4, tmp_path / "missing")


def test_a_record_of_another_layout_is_refused_and_not_cut_short() -> None:
    states = OnDisk(3)
    states.put(0, {"a": torch.zeros(2)})
    for other in (
        {"a": torch.zeros(3)},
        {"a": torch.zeros(2).double()},
        {"a": torch.zeros(2), "b": torch.ones(1)},
        {},
    ):
        with pytest.raises(UserError, match="tensors of other names, shapes or types"):
            states.put(1, other)
    assert states.get(1) is None


@pytest.mark.parametrize(
    ("method", "world", "optim"),
    [
        ("fedbn", {}, PLAIN),
        ("fedap", {}, PLAIN),
        ("hbn", {}, PLAIN),
        ("local_only", {"keep_momentum": True}, Optim(lr=0.1)),
        ("silobn", {"algorithm": "scaffold"}, PLAIN),
    ],
)
def test_a_run_does_not_see_where_its_clients_states_are(method: str, world: dict[str, object], optim: Optim) -> None:
    run = small_run(method=method, optim=optim, participation=0.7, rounds=3, **world)
    runs = [play(run, store=store) for store in (InMemory(), OnDisk(3))]
    memory, disk = ({client: bits(own) for client, own in kept_by(one.network.states)} for one in runs)
    assert memory == disk
    assert len(memory) > 1
    assert bits(runs[0].server.state) == bits(runs[1].server.state)
    assert runs[0].result(0.0).metrics == runs[1].result(0.0).metrics
