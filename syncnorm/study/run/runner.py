"""Run a study: skip finished runs, train the rest, write a row as each run ends, then write the report.

The study may be killed at any moment: when started again, it resumes and has lost at most the runs in progress.
"""

import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path

from syncnorm.config import MODELS, ClientEngine, Engine, Execution, Progress, Result, Run, describe, run_id
from syncnorm.environment import cores, cuda_devices, environment
from syncnorm.errors import UserError
from syncnorm.registry import refuse_while_importing
from syncnorm.study.plan.spec import Study, expand, values_at, with_engine
from syncnorm.study.report.plots.check import check_plots
from syncnorm.study.rows import ROWS, failed_row, finished_row, read, read_rows
from syncnorm.study.run.attempt import TRAINER, Failure, load_trainer, refuse_mistakes
from syncnorm.study.run.baselines import add_baselines, check_baselines
from syncnorm.study.run.changes import Change, changed_rows, stale_ids
from syncnorm.study.run.progress import Meter
from syncnorm.study.run.ranks import Job, die_with_parent, rank, take_part, world_size
from syncnorm.study.run.store import Store
from syncnorm.study.run.tracking import STALL_SECONDS, Kind, Mode, Tracker
from syncnorm.study.run.workers import Advanced, Ended, Placement, Started, work

DATA_LINES = 5
"""Maximum number of lines about loaded data."""
INTERRUPTED_SECONDS = 3.0


def run_study(
    study: Study,
    out: str | Path,
    *,
    jobs: int | None = None,
    engine: Engine | ClientEngine | None = None,
    wandb: Mode = "auto",
    keep: bool = False,
    track: Sequence[Kind] = (),
    trainer: str = TRAINER,
    command: str = "",
    save_models: bool = False,
    checkpoint_every: float = Execution.checkpoint_every,
) -> None:
    """Train a study's runs that the results folder `out` lacks, and write the report there.

    Virtual runs and runs of clients share `jobs` worker processes (by default one per core, four per CUDA device);
    torchrun runs of one size share a launch. `engine` sets every run's engine. `trainer` names the module that
    trains; `command` is stored for the report. Runs write a checkpoint every `checkpoint_every` seconds, and resume
    from it after the study was killed. `wandb` is the mode of Weights & Biases, `track` names further trackers.
    `save_models` saves the trained weights of every run that is trained under `out`/models, for `syncnorm.load_run`.
    In a process that torchrun started, all ranks together train the runs with exactly that number of ranks, and only
    rank 0 writes. A failed run gives a row with an error, and is tried again the next time. A finished run is trained
    again if the source code of a model or plugin, or the data, has changed, unless `keep` is set.

    Raises:
        UserError: an unusable study, folder or world size, or a full disk.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the report of the finished runs.
    """
    refuse_while_importing("run_study")
    study = with_engine(study, engine) if engine else study
    runs = check_study(study, jobs, checkpoint_every, trainer)
    size = world_size()
    if size is not None:
        runs = _runs_of_size(runs, size)
        die_with_parent()
        _silence()
        if rank() != 0:
            take_part((), load_trainer(trainer), lambda run, outcome: None)
            return
    label = _labeller(study, runs)
    stale, notes = _examine(runs, Path(out), trainer, keep, label)
    with Store.open(out, study, command) as store:
        store.finished -= stale
        meter = Meter(len(runs), sum(run_id(run) in store.finished for run in runs))
        trackers = _trackers(store.directory, wandb, track, {run_id(run): label(run) for run in runs})
        record = _Record(study, store, meter, trackers, label)
        how = Placement(store.checkpoints, checkpoint_every, store.directory / MODELS if save_models else None)
        with _recording(record, notes):
            if size is None:
                _hand_out(_todo(runs, store), record, trainer, jobs or default_jobs(), how)
            else:
                _train_together(_todo(runs, store), record, trainer, how)
            if trainer == TRAINER:
                add_baselines(study, runs, store.directory, meter.say)


def _examine(
    runs: Sequence[Run], out: Path, trainer: str, keep: bool, label: Callable[[Run], str]
) -> tuple[set[str], list[str]]:
    """Check the runs to be trained, before any training, and the finished ones.

    Returns:
        Ids of finished runs made with other source code or data (none if they are kept), and lines to print: loaded
        data, and changes.

    Raises:
        UserError: the first mistake in a run to be trained.
    """
    changes = _changes(runs, out, trainer)
    stale = stale_ids(changes, keep)
    unfinished = _unfinished(runs, out, stale)
    data = refuse_mistakes(unfinished, load_trainer(trainer), label) if unfinished else []
    more = [f"data: {len(data) - DATA_LINES} more, of other runs"] if len(data) > DATA_LINES else []
    notes = [f"note: {change.sentence(keep)}." for change in changes]
    return stale, [*(f"data: {line}" for line in data[:DATA_LINES]), *more, *notes]


def check_study(study: Study, jobs: int | None, checkpoint_every: float, trainer: str = TRAINER) -> list[Run]:
    """Return a study's runs; a mistake that shows without data raises `UserError`."""
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs is {jobs}: it must be at least 1.")
    if not 0 <= checkpoint_every < inf:
        raise UserError(f"checkpoint_every is {checkpoint_every}: it must be a number of seconds, at least 0.")
    runs = expand(study)
    check_plots(study, runs, names=trainer == TRAINER)
    check_baselines(study, runs)
    return runs


@contextmanager
def _recording(record: "_Record", notes: Sequence[str]) -> Iterator[None]:
    """Show progress inside the context, and close the record at its end or after an interrupt."""
    try:
        with _terminable(), record.meter:
            for note in notes:
                record.meter.say(note)
            yield
    except KeyboardInterrupt:
        record.close(INTERRUPTED_SECONDS)
        raise
    record.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM interrupt the study like Ctrl-C; schedulers send it before they kill."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a handler
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _trackers(directory: Path, wandb: Mode, track: Sequence[Kind], labels: dict[str, str]) -> list[Tracker]:
    """Start W&B's tracker according to its mode, and the other named trackers."""
    others: list[Kind] = [kind for kind in dict.fromkeys(track) if kind != "wandb"]
    return [Tracker(directory, "wandb", wandb, labels), *(Tracker(directory, kind, labels=labels) for kind in others)]


class _Record:
    """All receivers of a run's events: the results folder, the progress display, the trackers."""

    def __init__(
        self,
        study: Study,
        store: Store,
        meter: Meter,
        trackers: Sequence[Tracker],
        label: Callable[[Run], str],
    ) -> None:
        self.meter = meter
        self._study, self._store, self._trackers, self._label = study, store, trackers, label

    def started(self, run: Run) -> None:
        self.meter.started(self._label(run))
        for tracker in self._trackers:
            tracker.started(run)

    def advanced(self, run: Run, progress: Progress) -> None:
        self.meter.advanced(self._label(run), progress)
        for tracker in self._trackers:
            tracker.advanced(run, progress)

    def ended(self, end: Ended) -> None:
        outcome = end.outcome
        if isinstance(outcome, Result):
            row = finished_row(self._study.name, outcome)
        else:
            row = failed_row(self._study.name, end.run, outcome.error, end.seconds, end.environment, outcome.detail)
        self._store.append(row, keep_checkpoint=isinstance(outcome, Failure) and outcome.lost)
        error = outcome.error if isinstance(outcome, Failure) else ""
        self.meter.ended(self._label(end.run), error, diverged="diverged" in row.get("details", {}))

    def close(self, stall: float = STALL_SECONDS) -> None:
        """Write the report of the finished runs, and let the trackers catch up unless they stall."""
        from syncnorm.study.report.report import write_report  # imports plotting, which is slow to start

        try:
            write_report(self._store.directory)
            for tracker in self._trackers:
                tracker.reported()
        except UserError:
            raise
        except Exception as error:  # rows are the source of truth: a failing figure must not fail the study
            again = f"all rows are kept, try `syncnorm report {self._store.directory}`"
            self.meter.say(f"warning: there is no new report ({type(error).__name__}: {error}): {again}.")
        for tracker in self._trackers:
            tracker.close(stall)
            if tracker.warning:
                self.meter.say(f"warning: {tracker.warning}")


def _labeller(study: Study, runs: Sequence[Run]) -> Callable[[Run], str]:
    """Return a function that labels a run by what distinguishes it, e.g. "norm bn, skew 100, seed 3"."""
    grids = (study.vary, *(grid.vary for grid in study.also))
    names = dict.fromkeys(name for vary in grids for name in vary)
    configs = {run_id(run): describe(run) for run in runs}
    values = dict(zip(configs, values_at(list(configs.values()), names), strict=True))
    telling = [name for name in names if len({str(one.get(name)) for one in values.values()}) > 1]

    def label(run: Run) -> str:
        own = ((name, value) for name, value in values[run_id(run)].items() if name in telling)
        shown = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in own]
        return ", ".join([*shown, f"seed {run.seed}"])

    return label


def _changes(runs: Sequence[Run], out: Path, trainer: str) -> list[Change]:
    """Return what has changed since finished runs were made; nothing for a trainer other than syncnorm's."""
    if trainer != TRAINER or not (out / ROWS).exists():
        return []
    return changed_rows(runs, read_rows(out))


def _unfinished(runs: Sequence[Run], out: Path, stale: set[str]) -> list[Run]:
    """Return the runs that a results folder lacks, and stale ones; all if there is no such folder yet."""
    if not (out / "study.json").exists():
        return list(runs)
    finished = {row["run_id"] for row in read(out).finished} - stale
    return [run for run in runs if run_id(run) not in finished]


def _todo(runs: Sequence[Run], store: Store) -> list[Run]:
    """Return the runs without metrics; runs that failed before come last, so that they do not delay others."""
    failed = {row["run_id"] for row in read(store.directory).failed}
    todo = [run for run in runs if run_id(run) not in store.finished]
    return sorted(todo, key=lambda run: run_id(run) in failed)


def _hand_out(todo: Sequence[Run], record: _Record, trainer: str, jobs: int, how: Placement) -> None:
    """Train runs in worker processes and torchrun launches started by this process."""
    with closing(_events(todo, trainer, jobs, how)) as events:
        for event in events:
            if isinstance(event, Started):
                record.started(event.run)
            elif isinstance(event, Advanced):
                record.advanced(event.run, event.progress)
            else:
                record.ended(event)


def default_jobs() -> int:
    """Return one worker per core; with CUDA at most four per device, since each uses device memory."""
    return min(cores(), 4 * len(cuda_devices()) or cores())


def _events(
    todo: Sequence[Run], trainer: str, jobs: int, how: Placement
) -> Generator[Started | Advanced | Ended, None, None]:
    alone = [run for run in todo if run.world.processes() is None]
    yield from work(alone, trainer, workers=jobs, how=how)
    launches: dict[int, list[Run]] = {}
    for run in todo:
        if (ranks := run.world.processes()) is not None:
            launches.setdefault(ranks, []).append(run)
    for ranks, runs in launches.items():
        yield from work(runs, trainer, ranks=ranks, how=how)


def _runs_of_size(runs: Sequence[Run], size: int) -> list[Run]:
    """Return the torchrun runs that need exactly `size` ranks."""
    sizes = {ranks for run in runs if (ranks := run.world.processes()) is not None}
    if not sizes:
        raise UserError("the study has no torchrun runs: add --engine torchrun, or start it without torchrun.")
    if size not in sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise UserError(f"no run of the study needs {size} ranks: start torchrun with one of {known}.")
    return [run for run in runs if run.world.processes() == size]


def _train_together(todo: Sequence[Run], record: _Record, trainer: str, how: Placement) -> None:
    """Train runs as rank 0 of the torchrun that started this process; a failure ends the process."""
    begin = time.monotonic()

    def source() -> Iterator[Job]:
        nonlocal begin
        for run in todo:
            begin = time.monotonic()
            record.started(run)
            yield run, how.of(run)

    def emit(run: Run, outcome: Result | Failure) -> None:
        record.ended(Ended(run, outcome, time.monotonic() - begin, environment()))
        if isinstance(outcome, Failure):
            record.meter.say("a rank failed, so all ranks end: run the same command again for the other runs.")
            record.close(INTERRUPTED_SECONDS)

    take_part(source(), load_trainer(trainer), emit, record.advanced)


def _silence() -> None:
    """Keep libraries from writing between progress lines."""
    warnings.simplefilter("ignore")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "torch", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
