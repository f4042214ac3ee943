"""The side of a study that distributes runs: warm workers, replaced when they die.

A worker is one process, or one torchrun launch whose ranks share a run; both execute `ranks.py` of this folder, where
an executor starts them. Workers start once and train run after run. A new one replaces a dead one; torchrun's own
restarts are not used.
"""

from collections import Counter
from collections.abc import Generator, Sequence
from itertools import count
from multiprocessing.connection import wait

from syncnorm.config import Run, run_id
from syncnorm.errors import UserError
from syncnorm.study.run.executors.executor import Executor
from syncnorm.study.run.processes.attempt import Failure
from syncnorm.study.run.processes.events import Ended, Event, Moved, Placement, Started
from syncnorm.study.run.processes.queue import Later, Place, Queue
from syncnorm.study.run.processes.worker import Lost, Worker, start_workers

ATTEMPTS = 2
MOVES = 10
"""How often a run may lose its place before it fails."""


def work(
    runs: Sequence[Run],
    trainer: str,
    executor: Executor,
    *,
    ranks: int | None = None,
    how: Placement | None = None,
    later: Later | None = None,
    place: Place | None = None,
) -> Generator[Event, None, None]:
    """Train every run, and yield events as they happen.

    Workers that the executor starts share the runs; with `ranks`, each is a torchrun launch of `ranks` ranks. A run
    whose worker dies is tried once more, after the others. So is a run that raises on a rank of a launch, since ranks
    that lose a peer raise too. A run whose place is lost, a machine or a job, moves to another, which is no fault of
    its own and happens up to `MOVES` times. `how` says where runs write: after a lost worker, a run resumes from its
    checkpoint. `later` gives the runs that become known once the receiver has dealt with an event, and `place` their
    place among the others. Closing the iterator ends all workers. Workers that cannot start raise `UserError`.
    """
    how = how or Placement()
    todo, numbers, tally = Queue(runs, later, place, how.stack), count(), _Tally()
    team: list[Worker] = []
    try:
        while todo or any(worker.run for worker in team):
            busy, slots = sum(worker.run is not None for worker in team), executor.slots(ranks or 1)
            if (more := min(slots, busy + len(todo)) - len(team)) > 0:
                fresh = [next(numbers) for _ in range(more)]
                team += start_workers(executor, trainer, ranks, how, fresh)
            for worker in team:
                if worker.idle and (run := _next(worker, team, todo, slots)):
                    yield Started(run)
            for worker, ready in _with_news(team):
                suspect = ranks is not None
                try:
                    news: Event | None = worker.hear(ready)
                except Lost as lost:
                    if not lost.back:
                        team.remove(worker)
                        worker.end()
                    news, suspect = tally.lost(worker, lost, slots), True
                if news is None:
                    continue
                if again := tally.again(news, suspect):
                    todo.again(news.run, apart=not isinstance(news, Moved))
                if not again or isinstance(news, Moved):
                    yield news
                    todo.grow()
    finally:
        for worker in team:
            worker.end()
        for worker in team:
            worker.process.join()


class _Tally:
    """Counts what went wrong, and says what is tried again."""

    def __init__(self) -> None:
        self._tries, self._moves, self._stillborn = Counter[str](), Counter[str](), 0

    def lost(self, worker: Worker, lost: Lost, slots: int) -> Ended | Moved | None:
        """Return what a lost worker means for its run, if it had one.

        Raises:
            UserError: more workers than there are at once were lost before they came.
        """
        self._stillborn += not worker.came
        if self._stillborn > slots:
            raise UserError(f"workers cannot start: {lost.why.error}\n{lost.why.detail}".rstrip()) from None
        if lost.place and worker.run is not None and self._moves[run_id(worker.run)] < MOVES:
            run = worker.leave()
            assert run is not None
            self._moves[run_id(run)] += 1
            return Moved(run, lost.why.error)
        return worker.ended(lost.why)

    def again(self, news: Event, suspect: bool) -> bool:
        """Return whether a run is to be tried once more; a failure is not its own for certain if `suspect`."""
        if not isinstance(news, Ended):
            return isinstance(news, Moved)
        self._tries[run_id(news.run)] += 1
        suspect = suspect and isinstance(news.outcome, Failure) and not news.outcome.users
        return suspect and self._tries[run_id(news.run)] < ATTEMPTS


def _next(worker: Worker, team: list[Worker], todo: Queue, slots: int) -> Run | None:
    """Start the next run on one of so many workers, and return it; None if there is none for this worker."""
    found = todo.take(worker.training, {other.training for other in team if other is not worker}, slots)
    if found is None:
        return None
    worker.training = found.training
    return worker.take(found.run, found.together)


def _with_news(team: list[Worker]) -> list[tuple[Worker, bool]]:
    """Wait for messages, at most a second; return the workers that have sent one (True) or may be gone (False)."""
    ready = wait([worker.channel for worker in team], timeout=1)
    found = [(worker, worker.channel in ready) for worker in team]
    return [(worker, sent) for worker, sent in found if sent or worker.overdue or worker.process.exit()]
