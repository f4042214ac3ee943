"""In binary networks, does batch norm matter because it keeps gradients from growing?

Speaks to: Sari, Belbahri & Partovi Nia (arXiv 1909.09139), who claim this for binary networks, and that
           initialisations for real networks do not matter there. None of their numbers is reproduced.
Run:       syncnorm run experiments/binary.py [--quick]

An MLP of eight hidden binary layers, 128 wide, between a real first layer and a real classifier; digits, Adam. The
gradient norm is that of the loss with respect to each layer's output, for the first training batch, before and after
training. Besides batch norm and none, there is layer norm, which takes its scale from each sample alone; and no norm,
but binary layers divided by the square root of their number of inputs, a fixed scale instead of a measured one. If
batch norm only keeps gradients from growing, these two should do equally well. Real networks of the same shape show
the effect of the initialisations where scales matter. SGD is included besides Adam, since Adam's steps do not grow
with the gradient. The learning rate is tuned on validation data for every combination.
"""

from dataclasses import replace

from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Columns, Curve, Grid, LogUniform, Profile, Study, Tune

BINARY, INIT, SCALED = "model_options.binary", "model_options.init", "model_options.scaled"
NORMS = ["bn", "ln", "none"]
INITS = ["glorot", "uniform"]
LINE = ("norm", SCALED)
SGD = Optim(name="sgd", lr=0.05, epochs=10, weight_decay=0.0)

BASE = Run(
    data=Data("digits", validation=0.15),
    model="binary_mlp",
    model_options={"width": 128, "depth": 8, "init": "glorot", "binary": True, "scaled": False},
    world=Devices(per_device_batch=32),
    optim=Optim(name="adam", lr=0.003, epochs=10, weight_decay=0.0),
)

TUNE = Tune(
    {"lr": LogUniform(0.0003, 0.3)},
    per=("norm", INIT, BINARY, SCALED, "optim"),
    trials=6,
    seeds=2,
    shared=False,
)

FIGURES = (
    *(
        Profile(line=LINE, panel=INIT, metric=metric, where={BINARY: binary, "optim": "adam"}, title=title)
        for metric, binary, title in (
            ("gradient_norm_initial", True, "Binary networks: gradient norm by layer, before training"),
            ("gradient_norm_final", True, "Binary networks: gradient norm by layer, after training"),
            ("gradient_norm_initial", False, "Real networks: gradient norm by layer, before training"),
        )
    ),
    Curve(x=INIT, line=LINE, panel=BINARY, where={"optim": "adam"}, title="Accuracy by initialisation"),
    Columns(
        line=LINE,
        metrics=("accuracy", "loss", "train_loss"),
        panel=INIT,
        where={BINARY: True, "optim": "adam"},
        title="Binary networks, Adam",
    ),
    Columns(
        line=LINE,
        metrics=("accuracy", "loss", "train_loss"),
        panel="optim",
        where={BINARY: True, INIT: "glorot"},
        title="Binary networks of Glorot's initialisation, by optimiser",
    ),
)

STUDY = Study(
    name="binary",
    question="In binary networks, does batch norm matter because it keeps gradients from growing?",
    base=BASE,
    vary={"norm": NORMS, INIT: INITS, BINARY: [True, False]},
    seeds=10,
    tune=TUNE,
    also=(
        Grid({"norm": ["none"], INIT: INITS, SCALED: [True]}),
        Grid({"norm": NORMS, "optim": [SGD]}),
        Grid({"norm": ["none"], SCALED: [True], "optim": [SGD]}),
    ),
    figures=FIGURES,
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=4)),
        "vary": {"norm": ["bn", "none"], INIT: ["glorot", "uniform"], BINARY: [True, False]},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": (),
        "figures": FIGURES[:5],
    },
)
