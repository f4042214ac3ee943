"""Results folders of any size: a study of many runs, with rows made from that of one run which was trained.

`python -m growth.rows COMMAND ...` is `syncnorm COMMAND ...`, and says at the end how much memory it had.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
from peers.process import peak

from syncnorm.config import Data, Devices, Optim, Result, Run, describe, run_id
from syncnorm.files import write_file
from syncnorm.study import Curve, Study
from syncnorm.study.plan.about import about_plan
from syncnorm.study.plan.spec import expand
from syncnorm.study.plan.trials import plan_of
from syncnorm.study.rows import ROWS, finished_row
from syncnorm.study.run.store import write_about
from syncnorm.worlds import fit

NORMS = ["bn", "sync_bn", "gn", "ln", "in"]
SKEWS = [0, 50, 100]
RATES = [round(0.01 * 1.3**step, 4) for step in range(20)]
RUNS_OF_A_SEED = len(NORMS) * len(SKEWS) * len(RATES)
PEAK = "peak bytes: "

BASE = Run(
    Data("digits", size=8, train_limit=320, test_limit=200, validation=0.2),
    world=Devices(ranks=4, per_device_batch=8),
    optim=Optim(epochs=1),
    precision="float32",
)


def study_of(runs: int, name: str = "scale") -> Study:
    """Return a study of at least so many runs: 300 settings, and as many seeds as that takes."""
    seeds = -(-runs // RUNS_OF_A_SEED)
    vary = {"norm": NORMS, "skew": SKEWS, "lr": RATES}
    figures = (Curve(x="lr", line="norm", panel="skew", title="Accuracy against the learning rate"),)
    return Study(name, "How do costs grow with the number of rows?", BASE, vary, seeds=seeds, figures=figures)


@cache
def trained() -> Result:
    """Return the result of the one run that is trained."""
    return fit(BASE)


def rows_of(study: Study) -> Iterator[str]:
    """Yield a line for each run of a study: what one run gave, with other numbers."""
    one = trained()
    draw = np.random.default_rng(0)
    for run in expand(study):
        metrics = {key: float(value * draw.uniform(0.9, 1.0)) for key, value in one.metrics.items()}
        made = replace(one, run_id=run_id(run), config=describe(run), metrics=metrics)
        yield json.dumps(finished_row(study.name, made), separators=(",", ":")) + "\n"


def write_folder(folder: Path, study: Study, part: slice = slice(None)) -> int:
    """Write a results folder with some of a study's rows; return how many."""
    folder.mkdir(parents=True)
    plan = plan_of(study)
    write_about(folder, about_plan(plan, {}, ""))
    lines = list(rows_of(study))[part]
    write_file(folder / ROWS, "".join(lines))
    return len(lines)


def write_study(path: Path, runs: int) -> None:
    """Write the experiment file of such a study."""
    path.write_text(f"from growth.rows import study_of\n\nSTUDY = study_of({runs})\n")


def main() -> int:
    """Run a command of syncnorm."""
    from syncnorm.cli import main as command

    begun = time.perf_counter()
    code = command()
    print(f"{PEAK}{peak()}; seconds: {time.perf_counter() - begun:.3f}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
