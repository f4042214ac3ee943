"""Does norm and dropout before a linear layer help, with and without a skip connection?

Speaks to: Kim (arXiv 2108.08186), MLPs on face embeddings, 5 folds of Adience: age 60.86 % with norm and dropout
           before every linear layer and skip connections; gender 90.66 % with skip connections and without them.
           (Those embeddings are not available, so these numbers are not reproduced.) And to Chen et al. (arXiv
           1905.05928), who put batch norm and dropout before the weights rather than after them.
Run:       syncnorm run experiments/independent_components.py [--quick]

An MLP of two blocks of two linear layers, 128 wide, in two orders: "ic" is linear, ReLU, norm, dropout; "after" is
linear, norm, ReLU, dropout. Both have the same parameters and number of norms, and start from the same weights.
Without norm and skip the two orders are the same network, so only one is trained there. The data are 1400 images of
plain digits, and of digits blended into photographs. The learning rate is tuned on validation data for every
combination.
"""

from dataclasses import replace

from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Columns, Curve, Grid, LogUniform, Study, Tune

ORDER, SKIP, DROPOUT = "model_options.order", "model_options.skip", "model_options.dropout"
DATA = ["digits", "digits-photo"]
DROPOUTS = [0.0, 0.3]
LINE = ("norm", ORDER)

BASE = Run(
    data=Data("digits", train_limit=1400, validation=0.15),
    model="ic_mlp",
    model_options={"width": 128, "depth": 2, "order": "ic", "skip": True, "dropout": 0.0},
    world=Devices(per_device_batch=32),
    optim=Optim(lr=0.05, epochs=15),
)

TUNE = Tune(
    {"lr": LogUniform(0.005, 0.5)},
    per=("data", "norm", ORDER, SKIP, DROPOUT),
    trials=5,
    seeds=2,
    shared=False,
)

FIGURES = (
    *(
        Curve(x=DROPOUT, line=LINE, panel=SKIP, where={"data": data}, title=f"Accuracy against dropout, {data}")
        for data in DATA
    ),
    *(
        Curve(
            x=DROPOUT,
            line=LINE,
            panel=SKIP,
            metric="train_loss",
            where={"data": data},
            title=f"Loss in the last epoch of training, {data}",
        )
        for data in DATA
    ),
    Columns(
        line=("norm", ORDER, SKIP),
        metrics=("accuracy", "loss", "train_loss"),
        panel=DROPOUT,
        where={"data": "digits-photo"},
        title="On digits-photo, by the order, the skip connection and the dropout",
    ),
)

STUDY = Study(
    name="independent_components",
    question="Does norm and dropout before a linear layer help, with and without a skip connection?",
    base=BASE,
    vary={"data": DATA, "norm": ["bn"], ORDER: ["ic", "after"], SKIP: [True, False], DROPOUT: DROPOUTS},
    seeds=10,
    tune=TUNE,
    also=(
        Grid({"data": DATA, "norm": ["none"], ORDER: ["ic", "after"], SKIP: [True], DROPOUT: DROPOUTS}),
        Grid({"data": DATA, "norm": ["none"], ORDER: ["ic"], SKIP: [False], DROPOUT: DROPOUTS}),
    ),
    figures=FIGURES,
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=4)),
        "vary": {
            "data": ["digits"], "norm": ["bn"], ORDER: ["ic", "after"], SKIP: [True, False], DROPOUT: [0.0, 0.3],
        },
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": (),
        "figures": (FIGURES[0], FIGURES[2]),
    },
)  # fmt: skip
