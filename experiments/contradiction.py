"""What turns the sign between batch norm and group norm where clients' labels differ?

Speaks to: published tables that disagree. CIFAR-10, two classes a client: group norm 12 to 25 points above batch norm
           (Du et al., arXiv 2210.03277). CIFAR-10, MobileNetV2, Dirichlet 0.1: batch norm 36.0 %, group norm 21.5 %
           (Zhuang & Lyu, arXiv 2306.05879). Zhang et al. (arXiv 2308.09565) have group norm far above as well, but
           their rows of batch norm are not safe to use.
Run:       syncnorm run experiments/contradiction.py [--quick]

Ten clients share the digits. Two factors are crossed: the skew (one, two or five classes a client, Dirichlet 0.1 or
1 over each class), and the number of local steps between two averages, at 400 local steps in all. A third, depth, is
crossed with part of them: a residual network of fourteen layers, at one and two classes a client and Dirichlet 0.1.
Learning rates are tuned on validation data for every norm in every setting; group norm's number of groups with them.
The response is the accuracy of the one global model on the balanced test, group norm's minus batch norm's.
"""

from dataclasses import replace

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.study import Choice, Columns, Curve, Effects, Grid, LogUniform, Plot, Study, Tune

CLASSES = [1, 2, 5]
ALPHAS = [0.1, 1.0]
SKEW = ("skew_options", "alpha")
STEPS = 400
LOCAL_STEPS = [1, 10, 100]
NORMS = ["bn", "gn"]


def grids(
    norms: list[str],
    local_steps: list[int],
    classes: list[int],
    alphas: list[float],
    seeds: int | None = None,
    **more: list[object],
) -> tuple[Grid, ...]:
    """Return every norm at every skew and number of local steps, with as many rounds as make `STEPS` steps."""
    skews: list[dict[str, list[object]]] = []
    if classes:
        options: list[object] = [{"classes_per_client": count} for count in classes]
        skews.append({"skew": ["pathological"], "skew_options": options})
    if alphas:
        skews.append({"skew": ["dirichlet_by_class"], "alpha": list(alphas)})
    return tuple(
        Grid({"norm": list(norms), "local_steps": [steps], "rounds": [STEPS // steps], **skew, **more}, seeds)
        for steps in local_steps
        for skew in skews
    )


BASE = Run(
    data=Data("digits", size=8, validation=0.15),
    model="small_cnn",
    model_options={"width": 8},
    world=Clients(count=10, batch=16, engine="cohort"),
    optim=Optim(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0),
)

SMALL = {"model": ["small_cnn"], "model_options": [{"width": 8}]}
DEEP = {"model": ["resnet20"], "model_options": [{"width": 8, "depth": 14}]}
DEPTH = ("model", "model_options")
AVERAGED = {"norm": "bn", "method": "fedavg"}

TUNE = Tune(
    {"lr": LogUniform(0.01, 1.0)},
    own={"gn": {"norm.options.groups": Choice([1, 2, 4, 8])}},
    per=("norm", "method", *SKEW, "local_steps", *DEPTH),
    trials=5,
    seeds=2,
    shared=False,
)


def figures(**where: list[object]) -> tuple[Plot, ...]:
    """Return the figures of skew and local steps, of the runs that agree with `where`."""
    return (
        Effects(
            low=AVERAGED,
            high={"norm": "gn"},
            factors=(SKEW, "local_steps"),
            metric="global_accuracy",
            where=where,
            title="Group norm minus batch norm: accuracy of the global model, each tuned",
        ),
        Curve(
            x="local_steps",
            line="norm",
            panel=SKEW,
            metric="global_accuracy",
            where={**where, "method": "fedavg"},
            title="Accuracy of the global model against local steps, at 400 steps in all",
        ),
        Columns(
            line=SKEW,
            panel="local_steps",
            metrics=("global_accuracy", "global_reestimated_accuracy", "global_batch_accuracy"),
            where={**where, **AVERAGED},
            rivals=False,
            title="Batch norm: averaged statistics, re-estimated on all clients' images, and of the test images",
        ),
    )


FIRST, *OTHERS = grids(NORMS, LOCAL_STEPS, CLASSES, ALPHAS, **SMALL)
POOLED = grids(["bn"], [10], [1, 2], [0.1], seeds=5, method=["fedavg_pooled"], **SMALL)
DEEPER = grids(NORMS, [1, 10], [1, 2], [0.1], seeds=5, **DEEP)
CROSSED = {"local_steps": [1, 10], "skew_options": [{"classes_per_client": 1}, {"classes_per_client": 2}, {}]}

STUDY = Study(
    name="contradiction",
    question="What turns the sign between batch norm and group norm where clients' labels differ?",
    base=BASE,
    vary=FIRST.vary,
    seeds=10,
    tune=TUNE,
    also=(*OTHERS, *POOLED, *DEEPER),
    figures=(
        *figures(**SMALL),
        Effects(
            low=AVERAGED,
            high={"norm": "gn"},
            factors=(DEPTH, SKEW, "local_steps"),
            metric="global_accuracy",
            where={**CROSSED, "alpha": [0.1, None]},
            title="Group norm minus batch norm in two networks: three and fourteen layers, each tuned",
        ),
        Columns(
            line="method",
            panel=SKEW,
            metrics=("global_accuracy", "global_reestimated_accuracy"),
            where={
                **SMALL,
                "norm": "bn",
                "local_steps": 10,
                "skew_options": CROSSED["skew_options"],
                "alpha": [0.1, None],
            },
            title="Batch norm, 10 local steps: running variances averaged, and pooled with the spread of means",
        ),
        Columns(
            line=(*DEPTH, *SKEW, "norm"),
            panel="local_steps",
            metrics=("global_accuracy", "global_reestimated_accuracy", "global_batch_accuracy"),
            where={**DEEP},
            rivals=False,
            title="Fourteen layers: accuracy of the global model by skew",
        ),
    ),
    quick={
        "vary": grids(NORMS, [10], [1, 2], [], **SMALL)[0].vary,
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": grids(NORMS, [100], [1, 2], [], **SMALL),
        "figures": figures(**SMALL),
    },
)
