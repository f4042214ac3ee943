"""What the ranks of a launch say to each other before they train: by torchrun, or by a user's own means."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from ports import free_port
from processes import ABORTS, CLIENTS, Done, on_ranks

STUDY = """
import os
import syncnorm
from syncnorm.config import Clients, Run
from syncnorm.study import Study

{registers}
STUDY = Study("{name}", "?", Run(model="{model}", world=Clients(engine="torchrun", ranks=2)), {{"rounds": [2]}}, 1)
"""
PLUGIN = """
if os.environ["RANK"] == "1":
    syncnorm.register_metric("own")(lambda outputs, targets: 0.0)
"""


def study(folder: Path, name: str = "s", model: str = "small_cnn", registers: str = "") -> str:
    """Write a study's file, and return its name."""
    path = folder / f"{name}.py"
    path.write_text(STUDY.format(name=name, model=model, registers=registers))
    return str(path)


def started(*by_rank: Sequence[str]) -> list[Done]:
    """Start two ranks without torchrun, and return how each ended."""
    processes, port = [], str(free_port())
    for rank, arguments in enumerate(by_rank):
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        path = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-m", "syncnorm", *arguments]
        environment = {**os.environ, **own, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    said = [process.communicate(timeout=200) for process in processes]
    return [Done(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def launched(*by_rank: Sequence[str], torchrun: bool = True) -> list[str]:
    """Run `syncnorm run` on two ranks, with arguments by rank; return what each wrote to stderr."""
    both = [["run", *arguments, "--wandb", "off"] for arguments in by_rank]
    done: list[Done] = []
    while not done or any(one.returncode in ABORTS for one in done):  # gloo was seen to abort while its peers leave
        done = on_ranks(2, "syncnorm", by_rank=both, imports=CLIENTS) if torchrun else started(*both)
    assert [one.returncode for one in done] == [2] * 2, done
    return [one.stderr for one in done]


@pytest.mark.dist
def test_a_mistake_on_one_rank_ends_all_with_one_sentence(tmp_path: Path) -> None:
    there, away = study(tmp_path), str(tmp_path / "away.py")
    said = launched([there], [away], torchrun=False)
    assert said == [f"syncnorm: rank 1: there is no experiment file {away}.\n", ""]


@pytest.mark.dist
def test_ranks_with_other_plugins_or_studies_end_before_training(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    there = study(tmp_path, registers=PLUGIN)
    first, second = launched([there], [there])
    assert first.startswith("syncnorm: the ranks differ in plugins (none on rank 0; s on rank 1): give all ranks")
    assert second == ""
    first, second = launched([study(tmp_path)], [study(tmp_path / "other", name="t")])
    assert first.startswith("syncnorm: the ranks differ in study (s on rank 0; t on rank 1)")
    assert second == ""


@pytest.mark.dist
def test_a_mistake_that_the_first_rank_alone_looks_for_ends_all(tmp_path: Path) -> None:
    there = study(tmp_path, model="smal_cnn")
    first, second = launched(*[[there, "--out", str(tmp_path / "out")]] * 2)
    assert first.startswith("syncnorm: unknown model 'smal_cnn': did you mean 'small_cnn'?")
    assert second == ""
    assert not (tmp_path / "out").exists()
