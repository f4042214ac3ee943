"""The plan of a study: its reported runs, and the trials of the lines that it tunes.

What is still unknown, the chosen values, follows from the rows so far: `Plan.known` is a function of them alone, so
that a killed study continues with the same choices.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from syncnorm.config import Run, describe, run_id
from syncnorm.study.plan.lines import Members, lines_of
from syncnorm.study.plan.spec import Study, expand, has, points_of, value_at, with_fields
from syncnorm.study.rows import REPORTED, SHARED, TUNED, TUNING, Row
from syncnorm.study.tuning.choose import Standing, Tuning, standing


@dataclass(frozen=True)
class Planned:
    """A run of a study, and its part in it."""

    run: Run
    roles: tuple[str, ...]
    """Of "tuning", "tuned", "shared" and "reported"."""
    line: str = ""
    trial: int | None = None

    @cached_property
    def id(self) -> str:
        """The run's id."""
        return run_id(self.run)


@dataclass(frozen=True)
class Plan:
    """All runs of a study, as far as they can be known."""

    study: Study
    fixed: tuple[Planned, ...]
    """The runs that no choice decides: all of a study that tunes nothing, else those at the base's own values."""
    lines: tuple[Members, ...] = ()
    tuning: Tuning | None = None
    _made: dict[tuple[str, int], list[Planned]] = field(default_factory=dict, repr=False, compare=False)
    """Runs with the values of a trial, by line and trial."""

    def known(self, rows: Mapping[str, Row]) -> dict[str, Planned]:
        """Return the runs that can be known from these rows, by id: trials first, then seed after seed.

        A run that failed has ended too: leave its row out if it is to be tried again.
        """
        trials: list[Planned] = []
        reported = list(self.fixed)
        for members, now in self.standings(rows):
            trials += self._trials(members, now)
            if now.choice is not None:
                reported += self._tuned(members, now.choice)
        found: dict[str, Planned] = {}
        for one in [*sorted(trials, key=_seed), *sorted(reported, key=_seed)]:
            before = found.setdefault(one.id, one)
            if new := [role for role in one.roles if role not in before.roles]:
                found[one.id] = replace(before, roles=(*before.roles, *new))
        return found

    def standings(self, rows: Mapping[str, Row]) -> Iterator[tuple[Members, Standing]]:
        """Yield every line and its standing."""
        if self.tuning:
            for members in self.lines:
                yield members, standing(members.line, self.tuning, rows)

    def ahead(self, rows: Mapping[str, Row]) -> int:
        """Return how many runs will follow from choices that are not made yet."""
        tune, total = self.study.tune, 0
        for members, now in self.standings(rows):
            if tune and now.choice is None:
                total += sum(seeds for _, seeds in members.points)
                if tune.halve:
                    needed = tune.budget(len(members.trials)) * len(members.trials[0]) // tune.seeds
                    total += max(0, needed - len(now.wanted))
        return total

    def _trials(self, members: Members, now: Standing) -> list[Planned]:
        wanted = set(now.wanted)
        key = (members.line.name, -1)
        if key not in self._made:
            self._made[key] = [
                Planned(run, (TUNING,), members.line.name, number)
                for number, runs in enumerate(members.trials)
                for run in runs
            ]
        return [one for one in self._made[key] if one.id in wanted]

    def _tuned(self, members: Members, trial: int) -> list[Planned]:
        key = (members.line.name, trial)
        if key not in self._made:
            values, first = members.line.trials[trial].values, self.study.first_seed
            at = [(with_fields(run, values), seeds) for run, seeds in members.points]
            self._made[key] = [
                Planned(replace(run, seed=first + number), (TUNED,), members.line.name)
                for run, seeds in at
                for number in range(seeds)
            ]
        return self._made[key]


def plan_of(study: Study) -> Plan:
    """Return the plan of a study.

    Raises:
        UserError: an invalid value of a field; a mistake in what the study tunes.
    """
    runs, tune = expand(study), study.tune
    if tune is None:
        return Plan(study, tuple(Planned(run, (REPORTED,)) for run in runs))
    lines = lines_of(study, tune, points_of(study))
    config = describe(study.base)
    tuning = Tuning(
        by=tune.by,
        higher_is_better=tune.higher_is_better,
        seeds=tune.seeds,
        halve=tune.halve,
        per=tune.per,
        shared={name: value_at(config, name) for name in tune.fields() if has(config, name)},
        lines=tuple(members.line for members in lines),
        base={name: value_at(config, name) for name in tune.per if has(config, name)},
    )
    names = {run_id(run): members.line.name for members in lines for run, _ in members.points}
    fixed = [Planned(run, (SHARED,), names[run_id(replace(run, seed=0))]) for run in runs] if tune.shared else []
    return Plan(study, tuple(fixed), tuple(lines), tuning)


def _seed(one: Planned) -> int:
    return one.run.seed
