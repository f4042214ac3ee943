"""Does depth turn the sign between batch norm and group norm where clients' labels differ?

`experiments/contradiction.py` has a network of three norms. This is the same with a residual network of 13.

Speaks to: the same tables. Dirichlet 0.1 on CIFAR-10: MobileNetV2 with batch norm 36.0 %, with group norm 21.5 %
           (Zhuang & Lyu, arXiv 2306.05879).
Run:       syncnorm run experiments/contradiction_depth.py [--quick]

Ten clients share the digits: one class a client, or Dirichlet 0.1 over each class; 1 or 10 local steps between two
averages, 400 in all. Learning rates are tuned on validation data for every norm in every setting; group norm's number
of groups with them.
"""

from dataclasses import replace

from contradiction import BASE, FIGURES, NORMS, TUNE, grids

from syncnorm.study import LogUniform, Study

FIRST, *OTHERS = grids(NORMS, [1, 10], [1], [0.1])

STUDY = Study(
    name="contradiction_depth",
    question="Does depth turn the sign between batch norm and group norm where clients' labels differ?",
    base=replace(BASE, model="resnet20", model_options={"depth": 14, "width": 8}),
    vary=FIRST.vary,
    seeds=5,
    tune=replace(TUNE, ranges={"lr": LogUniform(0.003, 1.0)}, trials=8, halve=True),
    also=tuple(OTHERS),
    figures=FIGURES,
    quick={
        "vary": grids(NORMS, [10], [1], [])[0].vary,
        "also": grids(NORMS, [100], [1], []),
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
    },
)
