"""How many groups should group norm have on narrow layers?

Speaks to: Group Norm (arXiv 1803.08494): ImageNet, ResNet-50, layers of 64 channels and more, validation error 24.1 %
           with 32 groups, 25.3 % with one (layer norm), 28.4 % with one for each channel (instance norm). Hsieh et
           al. (arXiv 1910.00189) use 2 groups where labels are skewed.
Run:       syncnorm run experiments/groups.py [--quick]

Ten clients share the digits; the first layer of a small CNN has 8 or 32 channels, the others twice as many. The
learning rate is tuned on validation data for every regime and width, over all numbers of groups together: no skew,
Dirichlet 0.1 over each class, and one class a client. The response is the accuracy of the one global model on the
balanced test.
"""

from dataclasses import replace

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.study import Columns, Curve, Grid, LogUniform, Study, Tune

REGIME = ("skew", "skew_options", "alpha")
REGIMES: tuple[dict[str, list[object]], ...] = (
    {"skew": ["iid"]},
    {"skew": ["dirichlet_by_class"], "alpha": [0.1]},
    {"skew": ["pathological"], "skew_options": [{"classes_per_client": 1}]},
)
GROUPS = {8: [1, 2, 4, 8], 32: [2, 8, 16]}
"""Numbers of groups, by the channels of the first layer."""


def grids(groups: dict[int, list[int]], regimes: tuple[dict[str, list[object]], ...]) -> tuple[Grid, ...]:
    """Return these numbers of groups in these regimes, one grid for each regime and width."""
    return tuple(
        Grid(
            {
                "norm": [Norm("gn", {"groups": count}) for count in counts],
                "model_options": [{"width": width}],
                **regime,
            }
        )
        for regime in regimes
        for width, counts in groups.items()
    )


BASE = Run(
    data=Data("digits", size=8, validation=0.15),
    model="small_cnn",
    model_options={"width": 8},
    norm=Norm("gn"),
    world=Clients(count=10, rounds=40, local_steps=10, batch=16, engine="cohort"),
    optim=Optim(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0),
)

TUNE = Tune(
    {"lr": LogUniform(0.01, 2.0)},
    per=("norm", "model_options", *REGIME),
    trials=6,
    halve=True,
    shared=False,
)

FIRST, *OTHERS = grids(GROUPS, REGIMES)
STUDY = Study(
    name="groups",
    question="How many groups should group norm have on narrow layers?",
    base=BASE,
    vary=FIRST.vary,
    seeds=10,
    tune=TUNE,
    also=tuple(OTHERS),
    figures=(
        Curve(
            x="norm.options.groups",
            line=REGIME,
            panel="model_options",
            metric="global_accuracy",
            rivals=False,
            title="Accuracy of the global model, by group norm's number of groups",
        ),
        Columns(
            line="norm",
            panel=("model_options", *REGIME),
            metrics=("global_accuracy", "accuracy"),
            title="Global model and mean over clients, by group norm's number of groups",
        ),
    ),
    quick={
        "vary": grids({8: [2, 4]}, REGIMES[:1])[0].vary,
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": grids({8: [2, 4]}, REGIMES[2:]),
    },
)
