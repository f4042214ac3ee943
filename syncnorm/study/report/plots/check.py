"""Checks, before training, that a study's runs will provide everything its plots show."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from syncnorm.config import Run, describe, run_id
from syncnorm.errors import UserError, unknown
from syncnorm.registry import registry_of
from syncnorm.study.plan.about import about_study
from syncnorm.study.plan.spec import Study, field_path, has_field, once
from syncnorm.study.plan.trials import Plan
from syncnorm.study.plot import Reads
from syncnorm.study.rows import Results
from syncnorm.worlds import world_of


def check_plots(study: Study, runs: Sequence[Run], *, names: bool = True) -> None:
    """Raise `UserError` for a plot that these runs could not fill.

    This covers fields that no run has; metrics, histories and profiles that none of the plot's runs will have; and
    the plot's own checks. Names are not checked for a plot that shows none of the runs: the report leaves it out.
    With `names` False no names are checked, since another trainer may return any metrics.
    """
    about = about_study(replace(once(study), tune=None))  # a tuned study has the same points, with other values
    by_id = {run_id(run): run for run in runs if run.seed == study.first_seed}
    rows = {
        name: {"run_id": name, "config": describe(run), "metrics": {}, "evaluated_by": ""}
        for name, run in by_id.items()
    }
    for number, plot in enumerate(study.figures, start=1):
        shown = [by_id[name] for name, fields in about.runs.items() if name in by_id and plot.fits(fields)]
        if names and shown:
            _check_names(f"plot {number} of the study", plot.reads(), shown)
        plot.check(Results(about, rows))


def check_tuning(plan: Plan, *, names: bool = True) -> None:
    """Raise `UserError` for a plot that uses a tuned field, and for a metric to choose by that a line will not have.

    With `names` False the metric is not checked.
    """
    study, tune = plan.study, plan.study.tune
    if tune is None:
        return
    runs = [members.points[0][0] for members in plan.lines]
    tuned = {(path, name) for run in runs for name in tune.fields() if (path := _path(run, name))}
    for number, plot in enumerate(study.figures, start=1):
        for used in (*plot.fields(), *plot.references()):
            for path, name in tuned:
                if any(_path(run, used) == path for run in runs):
                    raise UserError(
                        f"plot {number} of the study uses {used}, and every line has its own {name}, since the study "
                        "tunes it: leave it out of the plot, or vary it and do not tune it."
                    )
    for members, run in zip(plan.lines, runs, strict=True):
        known = [*world_of(run).metrics(run), *_registered(run)]
        if not names or not members.line.ranges or tune.by in known:
            continue
        if "validation" in tune.by:
            raise UserError(
                f"tune.by is '{tune.by}', and no run with {members.line.name} will have it: set data.validation in "
                "the base run, e.g. Data(..., validation=0.2)."
            )
        raise unknown("metric, in tune.by,", tune.by, known)


def _path(run: Run, name: str) -> tuple[str, ...]:
    """Return the path of a run's field, empty if its world has no such field."""
    return field_path(run, name) if has_field(run, name) else ()


def _check_names(plot: str, reads: Reads, shown: Sequence[Run]) -> None:
    """Raise `UserError` for a name that none of the shown runs will have."""
    first = [run for run in shown if run.seed == shown[0].seed]  # other seeds have the same names
    parts: list[tuple[str, tuple[str, ...], Callable[[Run], list[str]]]] = [
        ("metric", reads.metrics, lambda run: [*world_of(run).metrics(run), *_registered(run)]),
        ("history", reads.histories, lambda run: world_of(run).histories(run)),
        ("profile", reads.profiles, lambda run: world_of(run).profiles(run)),
    ]
    for what, wanted, of in parts:
        for name in wanted:
            if any(name in of(run) for run in first):
                continue
            known = {name for run in first for name in of(run)}
            if not known:
                raise UserError(f"{plot} shows the {what} '{name}': none of its runs gives any {what}.")
            raise UserError(f"{plot}: {unknown(what, name, known)}")


def _registered(run: Run) -> list[str]:
    """Return the names of registered metrics in a run's row: their own, and one per domain."""
    names = list(registry_of("metric"))
    return names + [f"{name}_{domain}" for name in names for domain in getattr(run.world, "domains", ())]
