"""Runs a study: what is finished is skipped, the rest is trained, every end is a row at once, then the
report.

The study may be killed at any moment: started again it goes on, having lost no more than the runs in flight.
"""

import logging
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from syncnorm.config import Engine, Result, Run, describe, layout, run_id
from syncnorm.environment import cores, environment
from syncnorm.errors import UserError
from syncnorm.study.mirror import Mirror, Mode
from syncnorm.study.outcome import FIT, Failure, load_fit
from syncnorm.study.progress import Meter
from syncnorm.study.ranks import die_with_parent, rank, take_part, world_size
from syncnorm.study.spec import Study, expand, value_at, with_engine
from syncnorm.study.store import Store, failed_row, finished_row, read
from syncnorm.study.workers import Ended, Started, work

INTERRUPTED_SECONDS = 3.0


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    engine: Engine | None = None,
    wandb: Mode = "auto",
    fit: str = FIT,
    command: str = "",
) -> Path | None:
    """Train what the results folder `out` lacks of a study and write its report; return the report's path.

    Virtual runs share `jobs` worker processes (by default one a core), torchrun runs of one size share a
    launch. `engine` puts every run on that engine. `fit` names the function that trains, `command` is kept
    for the report. In a process that torchrun started, the runs of exactly its number of ranks are trained
    by all ranks together, and ranks other than 0 return None. A failed run is a row with an error, and is
    tried again the next time. `UserError`: a study, a folder or a world size that cannot be used, or a full
    disk.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1.")
    study = with_engine(study, engine) if engine else study
    runs = expand(study)
    size = world_size()
    if size is not None:
        runs = _runs_of_size(runs, size)
        die_with_parent()
        _silence()
        if rank() != 0:
            take_part((), load_fit(fit), lambda run, outcome: None)
            return None
    with Store.open(out, study, command) as store:
        record = _Record(study, runs, store, wandb)
        try:
            with record.meter:
                if size is None:
                    _hand_out(_todo(runs, store), record, fit, jobs or cores())
                else:
                    _train_together(_todo(runs, store), record, fit)
        except KeyboardInterrupt:
            record.close(INTERRUPTED_SECONDS)
            raise
        return record.close()


class _Record:
    """Everything that hears of a run: the results folder, the progress shown, the W&B mirror."""

    def __init__(self, study: Study, runs: Sequence[Run], store: Store, wandb: Mode) -> None:
        self._study, self._store = study, store
        grids = (study.vary, *(grid.vary for grid in study.also))
        self._fields = list(dict.fromkeys(name for vary in grids for name in vary))
        self.meter = Meter(len(runs), sum(run_id(run) in store.finished for run in runs))
        self._mirror = Mirror(store.directory, wandb)

    def started(self, run: Run) -> None:
        self.meter.started(self._label(run))

    def ended(self, end: Ended) -> None:
        outcome = end.outcome
        if isinstance(outcome, Result):
            row = finished_row(self._study.name, outcome)
        else:
            row = failed_row(self._study.name, end.run, outcome.error, end.seconds, end.environment, outcome.detail)
        self._store.append(row)
        self.meter.ended(self._label(end.run), outcome.error if isinstance(outcome, Failure) else "")

    def close(self, stall: float | None = None) -> Path:
        """Write the report of what there is, and let the mirror catch up for as long as it does not stall."""
        from syncnorm.study.report import write_report  # draws figures: not a cost of starting

        report = write_report(self._store.directory)
        self._mirror.close() if stall is None else self._mirror.close(stall)
        if self._mirror.warning:
            self.meter.say(f"warning: {self._mirror.warning}")
        return report

    def _label(self, run: Run) -> str:
        config = describe(run)
        values = [f"{name} {value_at(config, name)}" for name in self._fields]
        return ", ".join([*values, f"seed {run.seed}"])


def _todo(runs: Sequence[Run], store: Store) -> list[Run]:
    """Return the runs without metrics; those that failed before come last, so that they hold up no others."""
    failed = {row["run_id"] for row in read(store.directory).failed}
    todo = [run for run in runs if run_id(run) not in store.finished]
    return sorted(todo, key=lambda run: run_id(run) in failed)


def _hand_out(todo: Sequence[Run], record: _Record, fit: str, jobs: int) -> None:
    """Train runs in worker processes and torchrun launches of this process's own."""
    with closing(_events(todo, fit, jobs)) as events:
        for event in events:
            if isinstance(event, Started):
                record.started(event.run)
            else:
                record.ended(event)


def _events(todo: Sequence[Run], fit: str, jobs: int) -> Generator[Started | Ended, None, None]:
    yield from work([run for run in todo if run.world.engine == "virtual"], fit, workers=jobs)
    launches: dict[int, list[Run]] = {}
    for run in todo:
        if run.world.engine == "torchrun":
            launches.setdefault(layout(run.world)[0], []).append(run)
    for ranks, runs in launches.items():
        yield from work(runs, fit, ranks=ranks)


def _runs_of_size(runs: Sequence[Run], size: int) -> list[Run]:
    """Return the torchrun runs that need exactly `size` ranks."""
    sizes = {layout(run.world)[0] for run in runs if run.world.engine == "torchrun"}
    if not sizes:
        raise UserError("the study has no torchrun runs: add --engine torchrun, or start it without torchrun.")
    if size not in sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise UserError(f"no run of the study needs {size} ranks: start torchrun with one of {known}.")
    return [run for run in runs if run.world.engine == "torchrun" and layout(run.world)[0] == size]


def _train_together(todo: Sequence[Run], record: _Record, fit: str) -> None:
    """Train runs as rank 0 of the torchrun that started this process; a failure ends the process."""
    begin = time.monotonic()

    def source() -> Iterator[Run]:
        nonlocal begin
        for run in todo:
            begin = time.monotonic()
            record.started(run)
            yield run

    def emit(run: Run, outcome: Result | Failure) -> None:
        record.ended(Ended(run, outcome, time.monotonic() - begin, environment()))
        if isinstance(outcome, Failure):
            record.meter.say("a rank failed, and all ranks end with it: the same command goes on with other runs.")
            record.close(INTERRUPTED_SECONDS)

    take_part(source(), load_fit(fit), emit)


def _silence() -> None:
    """Keep libraries from writing between the lines of the progress."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "torch", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
