"""The description of a study for its report, stored with its rows."""

from typing import Any

from syncnorm.checks import check_value
from syncnorm.config import describe, run_id
from syncnorm.study.plan.spec import KIND, Study, expand, field_path, has, value_at, values_at
from syncnorm.study.plot import as_plain, names_of
from syncnorm.study.rows import About


def about_study(study: Study, command: str = "") -> About:
    """Return the description of a study for its report.

    Raises:
        UserError: a plot or an agreement with a field that no run has; a plot that `study.json` cannot store.
    """
    for agreement in study.agreements:
        field_path(study.base, agreement.over)
    named = (name for plot in study.figures for name in (*plot.fields(), *plot.references()))
    names = [KIND, "seed", *dict.fromkeys(named)]
    runs = {run_id(run): describe(run) for run in expand(study)}
    points = dict(zip(runs, values_at(list(runs.values()), names), strict=True))
    shared = {
        name for plot in study.figures for axis in plot.axes() if not isinstance(axis, str) for name in names_of(axis)
    }
    config = describe(study.base)
    base = {name: value_at(config, name) for name in sorted(shared) if has(config, name)}
    figures = tuple(as_plain(plot) for plot in study.figures)
    for number, plain in enumerate(figures, start=1):
        check_value(plain, dict[str, Any], f"plot {number} of the study")
    return About(study.name, study.question, command, points, figures, study.agreements, base, baselines=study.baselines)
