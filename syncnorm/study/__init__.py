"""Studies: their definition, their execution and their reports."""

from syncnorm.study.plan.spec import Grid, Study
from syncnorm.study.plot import Plot, View
from syncnorm.study.report.plots import (
    Columns,
    Curve,
    Drift,
    Effects,
    Evaluations,
    Gap,
    History,
    Improvement,
    Profile,
    Trade,
    register_plot,
)
from syncnorm.study.rows import Agreement
from syncnorm.study.run.runner import run_study
from syncnorm.study.table import Cell, Table
from syncnorm.study.tuning.ranges import Choice, LogUniform, Uniform
from syncnorm.study.tuning.tune import Tune

__all__ = [
    "Agreement",
    "Cell",
    "Choice",
    "Columns",
    "Curve",
    "Drift",
    "Effects",
    "Evaluations",
    "Gap",
    "Grid",
    "History",
    "Improvement",
    "LogUniform",
    "Plot",
    "Profile",
    "Study",
    "Table",
    "Trade",
    "Tune",
    "Uniform",
    "View",
    "register_plot",
    "run_study",
]
