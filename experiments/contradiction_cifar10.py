"""Does the rule of `experiments/contradiction.py` hold where it was not found: CIFAR-10, another network?

The rule, from digits: where a client has one or two classes and updates are averaged after every step, group norm is
above batch norm; with more classes or more local steps the sign is open.

Speaks to: the same tables. CIFAR-10, two classes a client: group norm 12 to 25 points above batch norm (Du et al.,
           arXiv 2210.03277); MobileNetV2, Dirichlet 0.1: 14.5 points below (Zhuang & Lyu, arXiv 2306.05879).
Run:       syncnorm run experiments/contradiction_cifar10.py --data.path FOLDER [--quick]

FOLDER holds CIFAR-10 as parquet files or image folders. Images are brought to 16x16 pixels, and a seed draws 4,000
training and 1,000 test images; the network has three strided convolutions. Everything else is as on digits, with 1
and 10 local steps; rates begin at 0.001, since batch norm's choices lay at digits' lower edge of 0.01.
"""

from dataclasses import replace

from contradiction import BASE, CLASSES, NORMS, SKEW, TUNE, figures, grids

from syncnorm.config import Data
from syncnorm.study import LogUniform, Study

CIFAR = replace(
    BASE,
    data=Data("cifar10", size=16, train_limit=4000, test_limit=1000, validation=0.15),
    model="strided_cnn",
    model_options={"width": 8, "depth": 3},
)
FIRST, *OTHERS = grids(NORMS, [1, 10], CLASSES, [0.1])

STUDY = Study(
    name="contradiction_cifar10",
    question="Does the rule for batch norm and group norm under label skew hold on CIFAR-10?",
    base=CIFAR,
    vary=FIRST.vary,
    seeds=10,
    tune=replace(
        TUNE, ranges={"lr": LogUniform(0.001, 1.0)}, trials=8, halve=True, per=("norm", *SKEW, "local_steps")
    ),
    also=tuple(OTHERS),
    figures=figures(),
    quick={
        "vary": grids(NORMS, [10], [1, 5], [])[0].vary,
        "also": grids(NORMS, [100], [1, 5], []),
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
    },
)
