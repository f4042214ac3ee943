"""A made-up study whose runs are tuned, with the scores of all test samples."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from made_up import fake_row

from syncnorm.config import run_id
from syncnorm.samples import sample_details
from syncnorm.study import Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.rows import Results, read
from syncnorm.study.run.store import Store
from syncnorm.study.tuning import choose
from syncnorm.study.tuning.ranges import LogUniform


def tuned(study: Study, folder: Path, gap: float = 0.2, luck: int = 0) -> Results:
    """Return the results of a study of bn and gn whose runs are tuned, gn better by `gap`, with samples' scores.

    `luck` draws other scores for the same runs, as another machine may.
    """
    with Store.open(folder, study) as store:
        for run in expand(study):
            rng = np.random.default_rng([run.seed, run.norm.name == "gn", luck])
            right = rng.random(300) < (0.6 + gap * (run.norm.name == "gn"))
            row = fake_row(study.name, run, accuracy=float(right.mean()))
            store.append({**row, "details": sample_details(right, np.arange(300) % 10)})
    results = read(folder)
    lines, runs = {}, {}
    for run in expand(study):
        name = f"norm {run.norm.name}"
        runs[run_id(run)] = {**results.about.runs[run_id(run)], "role": ["tuned"], "line": name}
        trials = tuple(choose.Trial({"lr": lr}, (("x",), ("y",))) for lr in (0.01, 0.05, 0.2))
        ranges = {"lr": LogUniform(0.005, 0.5).plain()}
        lines[name] = choose.Line(name, {"norm": run.norm.name}, ranges, trials, points=1)
    tuning = choose.Tuning("validation_accuracy", True, 2, False, ("norm",), {}, tuple(lines.values())).plain()
    return replace(results, about=replace(results.about, runs=runs, tuning=tuning))
