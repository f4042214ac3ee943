"""Studies: their definition, their execution and their reports."""

from syncnorm.study.plan.spec import Grid, Study
from syncnorm.study.plot import Plot, View
from syncnorm.study.report.plots import (
    Columns,
    Curve,
    Drift,
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

__all__ = [
    "Agreement",
    "Cell",
    "Columns",
    "Curve",
    "Drift",
    "Gap",
    "Grid",
    "History",
    "Improvement",
    "Plot",
    "Profile",
    "Study",
    "Table",
    "Trade",
    "View",
    "register_plot",
    "run_study",
]
