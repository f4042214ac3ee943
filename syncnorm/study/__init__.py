"""Many runs, one answer: what a study is, and what runs it."""

from syncnorm.study.exhibits import Agreement, Columns, Curve, Drift, Gap, History, Profile, Trade
from syncnorm.study.plan.spec import Grid, Study
from syncnorm.study.run.runner import run_study

__all__ = [
    "Agreement",
    "Columns",
    "Curve",
    "Drift",
    "Gap",
    "Grid",
    "History",
    "Profile",
    "Study",
    "Trade",
    "run_study",
]
