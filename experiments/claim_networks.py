"""What does batch norm change in a deep network: with sigmoids, dropout, noise after it, and in other places?

Speaks to: Batch Normalization (arXiv 1502.03167): with sigmoids Inception reaches 69.8 % with batch norm at five
           times the learning rate, and is at chance without; with ReLUs and without batch norm 72.2 %. How Does Batch
           Normalization Help Optimization? (arXiv 1805.11604): noise after batch norm moves the activations'
           distribution, and training stays good.
Run:       syncnorm run experiments/claim_networks.py [--quick]

Six hidden linear layers of 64 on digits blended into photographs at 8x8 pixels, with batches of 32. The learning rate
is tuned on validation data for every line. `experiments.claims` reads the rows, and trains on at these rates.
"""

from dataclasses import replace
from typing import Any

import experiments.claims.network  # noqa: F401  registers claims_mlp
from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Columns, Grid, LogUniform, Study, Tune

PLAIN: dict[str, Any] = {}
SIGMOID = {"activation": "sigmoid"}
DROPOUT = {"dropout": 0.2}
AFTER = {"place": "after"}
NOISY = {"noise": 0.5}
INSIDE, AFTER_SUM = {"place": "inside", "depth": 7}, {"place": "after_sum", "depth": 7}

LINE = ("norm", "model_options")
NORM_ALONE = [AFTER, NOISY, INSIDE, AFTER_SUM]
BASE = Run(
    data=Data("digits-photo", size=8, validation=0.15),
    model="claims_mlp",
    world=Devices(global_batch=32),
    optim=Optim(lr=0.05, epochs=4),
)
TUNE = Tune({"lr": LogUniform(0.003, 3.0)}, per=LINE, trials=8, halve=True, shared=False)

STUDY = Study(
    name="claim_networks",
    question="What does batch norm change in a deep network?",
    base=BASE,
    vary={"norm": ["none", "bn"], "model_options": [PLAIN, SIGMOID, DROPOUT]},
    seeds=6,
    tune=TUNE,
    baselines=("svm", "nearest"),
    also=(Grid({"norm": ["bn"], "model_options": NORM_ALONE}),),
    figures=(Columns(line=LINE, metrics=("accuracy", "loss", "train_loss"), title="Accuracy and losses"),),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=1)),
        "vary": {"norm": ["none", "bn"], "model_options": [PLAIN]},
        "also": (),
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "baselines": (),
    },
)
