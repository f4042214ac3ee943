"""Does a found difference of `experiments/contradiction.py` stay when each line has three times the trials?

At two classes a client and ten local steps, group norm was below batch norm, with five trials for learning rate and
groups together. That is little for two hyperparameters; here are sixteen, at other points.

Run:       syncnorm run experiments/contradiction_trials.py [--quick]
"""

from dataclasses import replace

from contradiction import BASE, NORMS, SMALL, TUNE, figures, grids

from syncnorm.study import Study

(GRID,) = grids(NORMS, [10], [2], [], **SMALL)

STUDY = Study(
    name="contradiction_trials",
    question="Is group norm below batch norm at two classes a client and ten local steps, with more trials?",
    base=BASE,
    vary=GRID.vary,
    seeds=10,
    tune=replace(TUNE, trials=16),
    figures=figures()[1:2],
    quick={"seeds": 2, "tune": replace(TUNE, trials=2, seeds=1)},
)
