"""Many runs, one answer: what a study is, and what runs it."""

from syncnorm.study.runner import run_study
from syncnorm.study.spec import Agreement, Curve, Grid, Study

__all__ = ["Agreement", "Curve", "Grid", "Study", "run_study"]
