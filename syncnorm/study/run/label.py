"""Readable names of a study's runs."""

from collections.abc import Callable
from typing import Any

from syncnorm.config import Run, describe, run_id
from syncnorm.study.plan.spec import expand, has, once, value_at, values_at
from syncnorm.study.plan.trials import Plan

Label = Callable[[Run], str]


def labeller(plan: Plan) -> Label:
    """Return a function that labels a run by what distinguishes it.

    E.g. "norm bn, skew 100, seed 3"; a trial is "trial 3, lr 0.02, norm bn, seed 10000", counted from 1.
    """
    study, tune = plan.study, plan.study.tune
    varied = dict.fromkeys(name for vary in (study.vary, *(grid.vary for grid in study.also)) for name in vary)
    values = values_at([describe(run) for run in expand(once(study))], varied)
    telling = [name for name in varied if len({str(one.get(name)) for one in values}) > 1]
    names = [*(tune.fields() if tune else []), *telling]
    trials = {
        run: number
        for members in plan.lines
        for number, trial in reversed(list(enumerate(members.line.trials, start=1)))
        for ids in trial.runs
        for run in ids
    }

    known: dict[str, str] = {}

    def label(run: Run) -> str:
        if (name := run_id(run)) not in known:
            config = describe(run)
            trial = [f"trial {trials[name]}"] if name in trials else []
            shown = [f"{field} {_text(value_at(config, field))}" for field in names if has(config, field)]
            known[name] = ", ".join([*trial, *shown, f"seed {run.seed}"])
        return known[name]

    return label


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
