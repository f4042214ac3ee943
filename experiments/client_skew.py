"""What does skew between clients do to accuracy, and which part of batch norm should a server average?

Speaks to: Zhang et al. (arXiv 2308.09565, table 4: CIFAR-10 with one or two classes a client, group and layer norm
           far above batch norm, whose rows there are not safe to use) and Zhuang & Lyu (arXiv 2306.05879: CIFAR-10
           with MobileNetV2, batch norm above group norm at every alpha). The two disagree about which norm wins, and
           this study does not decide it: here the winner changes with the groups, the learning rate and the skew.
Run:       syncnorm run experiments/client_skew.py [--quick]

Ten clients share the digits. Label skew: one domain, partitioned by Dirichlet(alpha) over each class. Feature skew:
five domains of digits with two clients each, each domain with digits of its own, partitioned in the same way within a
domain, so that alpha 100 is feature skew alone. An eleventh client never trains: it has its share of the one domain,
or a sixth domain that no other client has. The learning rate is tuned on validation data for every line, at every
alpha, with and without domains; so are group norm's number of groups, FixBN's freeze, FedProx's mu and FedAdam's
server learning rate.
"""

from dataclasses import replace

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.study import Choice, Columns, Curve, Drift, Grid, LogUniform, Study, Trade, Tune, Uniform

DOMAINS = ("digits", "digits-fonts", "digits-rotated", "digits-inverted", "digits-noisy")
ALPHAS = [0.1, 1, 100]

AT_HOME = ["fedavg", "silobn", "fedbn", "local_only", "centralised"]
IN_TRAINING = ["fixbn", "fedtan", "hbn"]
NORMS = ["gn", "none"]
ALGORITHMS = ["fedprox", "scaffold", "fedadam"]

LINE = ("method", "norm", "algorithm")
"""The fields that distinguish lines; values that are not named are fedavg and bn."""

ONE_DOMAIN: dict[str, list[object]] = {"domains": [()], "train_limit": [None]}
FIVE_DOMAINS: dict[str, list[object]] = {"domains": [DOMAINS], "train_limit": [240], "unseen": [("digits-photo",)]}


def grids(alphas: list[float], methods: list[str], norms: list[str], algorithms: list[str]) -> tuple[Grid, ...]:
    """Return every line at every alpha, with one domain and with five."""
    lines: list[dict[str, list[object]]] = [
        {"method": list(methods)},
        {"norm": list(norms)},
        {"norm": ["scaled_ws"], "clip": [0.5]},  # FedWon
        {"algorithm": list(algorithms)},
    ]
    lines = [line for line in lines if all(line.values())]
    return tuple(
        Grid({**line, "alpha": list(alphas), **where}) for where in (ONE_DOMAIN, FIVE_DOMAINS) for line in lines
    )


BASE = Run(
    data=Data("digits", size=8, validation=0.15),
    model="small_cnn",
    model_options={"width": 8},
    world=Clients(count=10, rounds=30, batch=16, skew="dirichlet_by_class", alpha=0.3, held_out=1, engine="cohort"),
    optim=Optim(lr=0.05, momentum=0.0, weight_decay=0.0, schedule="cosine", warmup=0.0),
)

TUNE = Tune(
    {"lr": LogUniform(0.02, 4.0)},
    own={
        "gn": {"norm.options.groups": Choice([1, 2, 4, 8])},
        "fixbn": {"lr": LogUniform(0.005, 1.0), "method_options.frozen_from": Uniform(0.2, 0.95)},
        "fedprox": {"algorithm_options.mu": LogUniform(0.001, 1.0)},
        "fedadam": {"lr": LogUniform(0.005, 1.0), "algorithm_options.lr": LogUniform(0.003, 0.3)},
    },
    per=(*LINE, "alpha", "domains"),
    trials=8,
    halve=True,
    shared=False,
)

PLAIN = {"norm": "bn", "algorithm": "fedavg"}
FIGURES = (
    Curve(
        x="alpha",
        line=LINE,
        panel="domains",
        where={**PLAIN, "method": AT_HOME},
        title="Accuracy at the clients: what of batch norm stays at home",
    ),
    Curve(
        x="alpha",
        line=LINE,
        panel="domains",
        where={**PLAIN, "method": ["fedavg", *IN_TRAINING]},
        title="Accuracy at the clients: what normalises in local training",
    ),
    Curve(
        x="alpha",
        line=LINE,
        panel="domains",
        where={"method": "fedavg", "algorithm": "fedavg"},
        title="Accuracy at the clients: which norm is averaged",
    ),
    Curve(
        x="alpha",
        line=LINE,
        panel="domains",
        where={"method": "fedavg", "norm": "bn"},
        title="Accuracy at the clients: how updates are corrected",
    ),
    Curve(
        x="alpha",
        line=LINE,
        panel="domains",
        metric="client_accuracy_worst",
        where={**PLAIN, "method": AT_HOME},
        title="Accuracy at the worst client: what of batch norm stays at home",
    ),
    Trade(
        line=LINE,
        panel="domains",
        where={**PLAIN, "alpha": 0.1, "method": [*AT_HOME[:-1], *IN_TRAINING]},
        title="Accuracy against bytes sent, at alpha 0.1: methods",
    ),
    Trade(
        line=LINE,
        panel="domains",
        where={"method": "fedavg", "alpha": 0.1},
        title="Accuracy against bytes sent, at alpha 0.1: norms and algorithms",
    ),
    Columns(
        line=LINE,
        metrics=("accuracy", "client_accuracy_worst", "global_accuracy", "reestimated_accuracy"),
        panel="domains",
        where={"alpha": 0.1},
        title="At alpha 0.1: mean and worst client, one global model, re-estimated statistics",
    ),
    Columns(
        line=LINE,
        metrics=("heldout_accuracy", "heldout_reestimated_accuracy"),
        panel="domains",
        where={"alpha": 1},
        title="At alpha 1: a client that never trained, with averaged and with re-estimated batch norm",
    ),
    Drift(
        panel="alpha",
        where={**PLAIN, "method": "fedavg", "domains": ()},
        title="How far each client's statistics are from the pooled ones, under fedavg and label skew",
    ),
    Drift(
        panel="alpha",
        where={**PLAIN, "method": "fedavg", "domains": DOMAINS},
        title="How far each client's statistics are from the pooled ones, under fedavg and feature skew",
    ),
)

STUDY = Study(
    name="client_skew",
    question="What does skew between clients do to accuracy, and which part of batch norm should a server average?",
    base=BASE,
    vary={"method": ["fedavg"], "alpha": ALPHAS},
    seeds=10,
    tune=TUNE,
    baselines=("svm", "nearest"),
    also=grids(ALPHAS, [*AT_HOME, *IN_TRAINING], NORMS, ALGORITHMS),
    figures=FIGURES,
    quick={
        "base": replace(BASE, world=replace(BASE.world, rounds=15)),
        "vary": {"method": ["fedavg"], "alpha": [0.1, 100]},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "baselines": (),
        "also": grids([0.1, 100], ["fedavg", "silobn", "fedbn", "fixbn"], ["gn"], []),
    },
)
