"""What a report needs to know of a study, kept beside its rows."""

from syncnorm.config import describe, run_id
from syncnorm.study.exhibits import fields_of, names_of, references_of
from syncnorm.study.plan.spec import KIND, Study, expand, field_path, has, value_at, values_at
from syncnorm.study.rows import About


def about_study(study: Study, command: str = "") -> About:
    """Return what a report needs to know of a study; a field of a figure or an agreement that no run has raises
    `UserError`."""
    for agreement in study.agreements:
        field_path(study.base, agreement.over)
    named = (name for figure in study.figures for name in (*fields_of(figure), *references_of(figure)))
    names = [KIND, "seed", *dict.fromkeys(named)]
    runs = {run_id(run): describe(run) for run in expand(study)}
    points = dict(zip(runs, values_at(list(runs.values()), names), strict=True))
    axes = (getattr(figure, axis, None) for figure in study.figures for axis in ("x", "line", "panel"))
    shared = {name for axis in axes if not isinstance(axis, str) for name in names_of(axis)}
    config = describe(study.base)
    base = {name: value_at(config, name) for name in sorted(shared) if has(config, name)}
    return About(study.name, study.question, command, points, study.figures, study.agreements, base)
