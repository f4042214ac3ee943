import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

for folder in ("", "models", "norms", "training", "devices", "federated", "federated/flower", "doctor"):
    sys.path.insert(0, str(Path(__file__).parent / folder))
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files that take longest first."""
    from order import LONGEST

    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays: thousands of tests, each time that somebody calls it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _compiled_code_is_forgotten() -> Iterator[None]:
    """No test meets what another compiled: after an error, or eight variants, torch compiles a function no more."""
    yield
    compiling = sys.modules.get("torch._dynamo.convert_frame")
    if compiling and compiling.input_codes.seen:
        torch.compiler.reset()


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    """A test that leaves a process group fails itself, and not those after it."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        raise AssertionError("this test left a process group")


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    from syncnorm.registry import HOMES, registry_of

    for registry in map(registry_of, HOMES):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
        monkeypatch.setattr(registry, "_sources", dict(registry._sources))
