import subprocess
import sys
from dataclasses import replace

import pytest

from syncnorm.config import Data, Devices, Norm, Optim, Run, describe, layout, run_id
from syncnorm.errors import UserError, unknown
from syncnorm.seeds import derive


@pytest.mark.parametrize(
    ("world", "expected"),
    [
        (Devices(), (1, 32)),
        (Devices(ranks=4), (4, 32)),
        (Devices(ranks=4, per_device_batch=2), (4, 2)),
        (Devices(global_batch=32, per_device_batch=2), (16, 2)),
        (Devices(global_batch=32, ranks=8), (8, 4)),
        (Devices(global_batch=32), (1, 32)),
        (Devices(ranks=2, per_device_batch=3, global_batch=6), (2, 3)),
    ],
)
def test_any_two_numbers_give_the_layout(world: Devices, expected: tuple[int, int]) -> None:
    assert layout(world) == expected


@pytest.mark.parametrize(
    "world",
    [
        Devices(ranks=0),
        Devices(per_device_batch=-1),
        Devices(global_batch=32, ranks=5),
        Devices(global_batch=32, per_device_batch=5),
        Devices(global_batch=4, ranks=8),
        Devices(ranks=2, per_device_batch=3, global_batch=7),
    ],
)
def test_numbers_that_do_not_fit_are_refused(world: Devices) -> None:
    with pytest.raises(UserError):
        layout(world)


def test_the_same_run_written_differently_has_the_same_id() -> None:
    a = Run(world=Devices(global_batch=32, per_device_batch=4, skew=100))
    b = Run(world=Devices(ranks=8, per_device_batch=4, skew=100.0), data=Data(path="/anywhere"))
    assert run_id(a) == run_id(b)
    assert "path" not in describe(b)["data"]


def test_every_other_field_changes_the_id() -> None:
    base = Run()
    others = [
        replace(base, seed=1),
        replace(base, model="mlp"),
        replace(base, norm=Norm("gn")),
        replace(base, norm=Norm("bn", {"eps": 1e-3})),
        replace(base, data=Data("digits")),
        replace(base, world=Devices(engine="torchrun")),
        replace(base, optim=Optim(lr=0.1)),
        replace(base, precision="float64"),
    ]
    assert len({run_id(run) for run in [base, *others]}) == len(others) + 1


def test_seeds_are_the_same_in_another_process_and_differ_by_purpose() -> None:
    program = "from syncnorm.seeds import derive; print(derive('order', 3, 1, 'a'))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == derive("order", 3, 1, "a") < 2**63
    assert len({derive("order", 0), derive("order", 1), derive("init", 0), derive("order", 0, 1)}) == 4


def test_unknown_names_the_nearest() -> None:
    assert str(unknown("norm", "sync_nb", ["bn", "sync_bn"])) == (
        "unknown norm 'sync_nb': did you mean 'sync_bn'? Known: bn, sync_bn."
    )
    assert "did you mean" not in str(unknown("norm", "xyz", ["bn"]))
