"""What a study still has to train: it grows while rows come in, since a line's choice needs its trials."""

from collections.abc import Iterable

from syncnorm.config import Run, run_id
from syncnorm.progress import counted
from syncnorm.study.plan.trials import Plan, Planned
from syncnorm.study.rows import TUNING, Row


class Schedule:
    """The runs of a plan without a row of this session, or with metrics of an earlier one.

    Rows of failed runs of earlier sessions do not count, since these runs are tried again: a choice waits for them.

    Args:
        plan: the plan of the study.
        rows: all rows of the results folder.
        stale: ids of finished runs that are to be trained again.
    """

    def __init__(self, plan: Plan, rows: dict[str, Row], stale: Iterable[str] = ()) -> None:
        self.plan = plan
        again = set(stale)
        self._rows = {name: row for name, row in rows.items() if "metrics" in row and name not in again}
        self._failed = {name for name, row in rows.items() if "metrics" not in row}
        self._known: dict[str, Planned] = {}
        self._order: dict[str, int] = {}
        self._handed: set[str] = set()
        self._fresh = True
        self.update()

    @property
    def known(self) -> dict[str, Planned]:
        """The runs that can be known so far, by id."""
        return self._known

    @property
    def rows(self) -> dict[str, Row]:
        """The rows that count so far, by id."""
        return self._rows

    @property
    def total(self) -> int:
        """Number of runs of the whole study, as far as it can be known: the choices decide which, not how many."""
        return len(self._known) + self.plan.ahead(self._rows)

    @property
    def done(self) -> int:
        """Number of known runs that have ended."""
        return sum(name in self._rows for name in self._known)

    def ended(self, row: Row) -> bool:
        """Count a new row; return whether further runs are known by it."""
        self._rows[row["run_id"]] = row
        if TUNING not in self._known[row["run_id"]].roles:
            return False
        before = len(self._known)
        self.update()
        return len(self._known) > before

    @property
    def waiting(self) -> str:
        """Say how many lines wait for their trials; empty if none does."""
        count = sum(now.choice is None for _, now in self.plan.standings(self._rows))
        return f"{counted(count, 'line')} not tuned yet" if count else ""

    def update(self) -> None:
        """Find the runs that can be known now."""
        self._known = self.plan.known(self._rows)
        self._order = {name: number for number, name in enumerate(self._known)}
        self._fresh = True

    def todo(self) -> list[Run]:
        """Return the known runs that have not ended; those that failed before come last, not to delay others."""
        todo = [one for name, one in self._known.items() if name not in self._rows]
        return [one.run for one in sorted(todo, key=lambda one: one.id in self._failed)]

    def hand_out(self, ranks: int | None) -> list[Run]:
        """Return the runs of so many ranks (None: without torchrun) that were not handed out before."""
        runs = [run for run in self.todo() if run.world.processes() == ranks and run_id(run) not in self._handed]
        self._handed |= {run_id(run) for run in runs}
        self._fresh = False
        return runs

    def news(self, ranks: int | None) -> list[Run]:
        """Return the same, at once if no run has become known since: this is asked after every event."""
        return self.hand_out(ranks) if self._fresh else []

    def place(self, run: Run) -> tuple[bool, int]:
        """Return a run's place in the order of training, which holds for runs that become known later too."""
        name = run_id(run)
        return name in self._failed, self._order.get(name, len(self._order))
