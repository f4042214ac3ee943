"""The description of a study for its report, stored with its rows."""

from collections.abc import Mapping
from typing import Any

from syncnorm.checks import check_value
from syncnorm.config import describe
from syncnorm.study.plan.spec import KIND, Study, field_path, has, value_at, values_at
from syncnorm.study.plan.trials import Plan, Planned, plan_of
from syncnorm.study.plot import as_plain, names_of
from syncnorm.study.rows import About, Row


def about_study(study: Study, command: str = "") -> About:
    """Return the description of a study for its report, before any of its runs has a row.

    Raises:
        UserError: a plot or an agreement with a field that no run has; a plot that `study.json` cannot store.
    """
    return about_plan(plan_of(study), {}, command)


def about_plan(plan: Plan, rows: Mapping[str, Row], command: str = "") -> About:
    """Return the description of a planned study with the runs that can be known from these rows.

    Raises:
        UserError: as `about_study`.
    """
    study = plan.study
    for agreement in study.agreements:
        field_path(study.base, agreement.over)
    named = (name for plot in study.figures for name in (*plot.fields(), *plot.references()))
    names = [KIND, "seed", *dict.fromkeys(named)]
    known = plan.known(rows)
    values = values_at([describe(one.run) for one in known.values()], names)
    points = {name: {**own, **_part(one)} for (name, one), own in zip(known.items(), values, strict=True)}
    shared = {
        name for plot in study.figures for axis in plot.axes() if not isinstance(axis, str) for name in names_of(axis)
    }
    config = describe(study.base)
    base = {name: value_at(config, name) for name in sorted(shared) if has(config, name)}
    figures = tuple(as_plain(plot) for plot in study.figures)
    for number, plain in enumerate(figures, start=1):
        check_value(plain, dict[str, Any], f"plot {number} of the study")
    tuning = plan.tuning.plain() if plan.tuning else {}
    return About(
        study.name, study.question, command, points, figures, study.agreements, base, tuning, study.baselines
    )


def _part(one: Planned) -> dict[str, Any]:
    """Return a run's part in its study, as `study.json` holds it."""
    line = {"line": one.line} if one.line else {}
    return {"role": list(one.roles), **line, **({"trial": one.trial} if one.trial is not None else {})}
