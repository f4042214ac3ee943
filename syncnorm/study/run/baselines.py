"""Compute the pixel baselines of a study, once for each of its problems, after its runs."""

import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from syncnorm.baselines import BASELINES, Problem, score
from syncnorm.config import Run, describe, run_id
from syncnorm.errors import UserError
from syncnorm.fingerprint import code_fingerprint
from syncnorm.progress import counted
from syncnorm.study.baselines import Scored, problem_of, read_scores, write_scores
from syncnorm.study.plan.spec import Study
from syncnorm.study.rows import Row, read
from syncnorm.worlds import SAMPLES, forget, world_of

METRIC = "accuracy"
"""What a baseline is compared by."""
TUNING = ["tuning"]
"""Role of runs that are reported nowhere."""
SAY_SECONDS = 10.0


def check_baselines(study: Study, runs: Sequence[Run]) -> None:
    """Raise `UserError` for a baseline that is unknown, or of runs that do not classify."""
    for name in study.baselines:
        _ = BASELINES[name]
        if BASELINES.source(name) is None and find_spec("sklearn") is None:
            raise UserError(
                f"baseline '{name}' needs scikit-learn, which is not installed: pip install 'syncnorm[study]', or "
                "leave out the study's baselines."
            )
    if not study.baselines:
        return
    for run in {type(run.world): run for run in runs}.values():
        if METRIC not in world_of(run).metrics(run):
            raise UserError(
                f"study '{study.name}' has baselines ({', '.join(study.baselines)}), which classify, and its runs "
                f"have no metric '{METRIC}': leave out the study's baselines."
            )


def add_baselines(study: Study, runs: Sequence[Run], folder: Path, say: Callable[[str], None]) -> None:
    """Compute the scores that a results folder lacks, and store each as soon as it is there.

    There is one score for each baseline and problem of the finished runs. A baseline that fails is left out, with a
    warning.
    """
    if not study.baselines:
        return
    known = {one.key: one for one in read_scores(folder)}
    todo = _missing(study.baselines, _problems(runs, folder), known.values())
    if not todo:
        return
    say(f"pixel baselines: {counted(len(todo), 'split')} to go")
    said = time.monotonic()
    for number, (run, names) in enumerate(todo, start=1):
        for failure in _score(run, names, known):
            say(f"warning: {failure}")
        write_scores(folder, known.values())
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            say(f"pixel baselines: {number}/{len(todo)}")
    forget()


def _problems(runs: Sequence[Run], folder: Path) -> list[tuple[Run, Row]]:
    """Return the first finished run of every problem, with its row."""
    results, planned = read(folder), {run_id(run): run for run in runs}
    first: dict[tuple[str, str], tuple[Run, Row]] = {}
    for row in results.finished:
        role = results.about.runs[row["run_id"]].get("role")
        if row["run_id"] in planned and role != TUNING:
            samples = row.get("fingerprints", {}).get(SAMPLES, "")
            first.setdefault((problem_of(row["config"]), samples), (planned[row["run_id"]], row))
    return list(first.values())


def _missing(
    names: Sequence[str], problems: Iterable[tuple[Run, Row]], known: Iterable[Scored]
) -> list[tuple[Run, list[str]]]:
    """Return the runs whose problems lack scores, with the baselines that they lack."""
    found = []
    have = list(known)
    for run, row in problems:
        there = {(one.baseline, one.source) for one in have if one.fits(row)}
        if lacking := [name for name in names if (name, _source(name)) not in there]:
            found.append((run, lacking))
    return found


def _score(run: Run, names: Sequence[str], known: dict[tuple[str, str, str, str], Scored]) -> list[str]:
    """Add the scores of baselines on a run's problem to `known`; return a sentence for each that failed.

    A problem of the same content, such as a fixed split with another seed, is not solved again.
    """
    try:
        world = world_of(run)
        problem, samples = world.pixels(run), world.data(run).fingerprint
    except UserError as error:
        return [f"there is no baseline of these data: {error}"]
    content, failures = _content(problem), []
    for name in names:
        begin, source = time.monotonic(), _source(name)
        alike = [one for one in known.values() if (one.baseline, one.source, one.content) == (name, source, content)]
        try:
            new = score(name, problem) if not alike else None
        except Exception as error:
            failures.append(f"the baseline '{name}' failed ({type(error).__name__}: {error}).")
            continue
        one = Scored(
            baseline=name,
            words=BASELINES[name].words,
            problem=problem_of(describe(run)),
            samples=samples,
            content=content,
            accuracy=new.accuracy if new else alike[0].accuracy,
            used=new.samples if new else alike[0].used,
            of=len(problem.train_y),
            tests=len(problem.test_y),
            settings=new.settings if new else alike[0].settings,
            source=source,
            seconds=round(time.monotonic() - begin, 1),
        )
        known[one.key] = one
    return failures


def _source(name: str) -> str:
    return "" if BASELINES.source(name) is None else code_fingerprint(BASELINES[name].function)


def _content(problem: Problem) -> str:
    digest = sha256()
    for part in (problem.train_x, problem.train_y, problem.test_x, problem.test_y, problem.weights):
        digest.update(f"{part.dtype} {part.shape}\n".encode())
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]
