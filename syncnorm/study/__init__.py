"""Many runs, one answer: what a study is, and what runs it."""

from syncnorm.study.exhibits import Columns, Curve, Drift, Gap, History, Profile, Trade
from syncnorm.study.runner import run_study
from syncnorm.study.spec import Agreement, Grid, Study

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
