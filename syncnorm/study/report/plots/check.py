"""Checks, before training, that a study's runs will provide everything its plots show."""

from collections.abc import Callable, Sequence

from syncnorm.config import Run, describe, run_id
from syncnorm.errors import UserError, unknown
from syncnorm.registry import registry_of
from syncnorm.study.plan.about import about_study
from syncnorm.study.plan.spec import Study
from syncnorm.study.plot import Reads
from syncnorm.study.rows import Results
from syncnorm.worlds import world_of


def check_plots(study: Study, runs: Sequence[Run], *, names: bool = True) -> None:
    """Raise `UserError` for a plot that these runs could not fill.

    This covers fields that no run has; metrics, histories and profiles that none of the plot's runs will have; and
    the plot's own checks. Names are not checked for a plot that shows none of the runs: the report leaves it out.
    With `names` False no names are checked, since another trainer may return any metrics.
    """
    about = about_study(study)
    by_id = {run_id(run): run for run in runs}
    rows = {
        name: {"run_id": name, "config": describe(run), "metrics": {}, "evaluated_by": ""}
        for name, run in by_id.items()
    }
    for number, plot in enumerate(study.figures, start=1):
        shown = [by_id[name] for name, fields in about.runs.items() if name in by_id and plot.fits(fields)]
        if names and shown:
            _check_names(f"plot {number} of the study", plot.reads(), shown)
        plot.check(Results(about, rows))


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
