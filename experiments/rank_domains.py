"""What does it cost that each device holds a domain of its own, and whose statistics mend it?

Hospitals, cameras and drivers feed one training, each from its own machine. Under DDP a batch norm then normalises
with one domain's statistics, and the model that is saved has rank 0's. The dial `domain_skew` goes from devices that
all hold all domains (0 %) to one domain a device (100 %).

Speaks to: Hsieh et al. (arXiv 1910.00189): where devices hold different labels, batch norm fails and group norm is
           mostly as good as before. Here the labels are alike on all devices, and the images differ.
           DSBN (arXiv 1906.03950): statistics for each domain, in one process. FedBN (arXiv 2102.07623): batch norm
           kept by each client, where the clients' images differ.
Run:       syncnorm run experiments/rank_domains.py [--quick]

Four devices with 8 samples each train on four domains of digits, which have digits of their own; a test knows its
domain. `bn` normalises each device's samples by themselves and is tested with rank 0's running statistics, as DDP
saves them, or with those of all devices pooled; both are one training. `sync_bn` merges statistics over devices,
`domain_bn` over devices domain by domain, and `gn` has none. The last three do not ask who holds a sample, so one
point of the dial, 100 %, stands for all. The learning rate is tuned for every
norm at every skew on validation samples, for `bn` with rank 0's statistics; group norm's number of groups with it.

At 100 % and in training, `bn` on four devices is `domain_bn`: each device's statistics are its domain's. They differ
in the test alone. Two real ranks under torchrun repeat that end in float64 and must agree with virtual ranks.
"""

from dataclasses import replace

from syncnorm.config import Data, Domains, Optim, Run
from syncnorm.study import Agreement, Choice, Curve, Grid, LogUniform, Study, Tune

DOMAINS = ("digits", "digits-photo", "digits-rotated", "digits-inverted")
SKEWS = [0, 50, 80, 100]
ENDS = [0, 100]
WHOLE = ["sync_bn", "domain_bn", "gn"]
"""Norms that do not go by the device's batch."""
VIRTUAL = {"engine": "virtual", "precision": "float32"}
TWINS = {
    "norm": ["bn", *WHOLE],
    "domain_skew": [100],
    "ranks": [2],
    "precision": ["float64"],
    "engine": ["virtual", "torchrun"],
}
"""Two devices of 16 samples, real and virtual; in float64, so that rounding differences stay negligible."""

FIGURES = (
    Curve(
        x="domain_skew",
        line=("norm", "buffers"),
        where=VIRTUAL,
        title="Accuracy, mean over the domains, against how much each device holds its own domain",
    ),
    Curve(
        x="domain_skew",
        line="norm",
        panel="engine",
        where={"precision": "float64"},
        title="Two devices of 16 samples: virtual ranks, and real ranks under torchrun",
    ),
)

BASE = Run(
    data=Data("domains", train_limit=280, validation=0.15),
    model="small_cnn",
    world=Domains(domains=DOMAINS, batch=32, ranks=4),
    optim=Optim(lr=0.05, epochs=12),
    evaluate_every=12,
)

TUNE = Tune(
    {"lr": LogUniform(0.003, 3.0)},
    own={"gn": {"norm.options.groups": Choice([2, 4, 8])}},
    per=("norm", "domain_skew"),
    at={"precision": ["float32"], "buffers": ["rank0"]},
    trials=8,
    halve=True,
    shared=False,
)

STUDY = Study(
    name="rank_domains",
    question="What does it cost that each device holds a domain of its own, and whose statistics mend it?",
    base=BASE,
    vary={"norm": ["bn"], "domain_skew": SKEWS, "buffers": ["rank0", "pooled"]},
    seeds=10,
    tune=TUNE,
    also=(
        Grid({"norm": WHOLE, "domain_skew": [100]}),
        Grid(TWINS, seeds=1),
    ),
    figures=FIGURES,
    agreements=(Agreement(over="engine", tolerance=1e-8),),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=4), evaluate_every=4),
        "vary": {"norm": ["bn"], "domain_skew": ENDS, "buffers": ["rank0", "pooled"]},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": (Grid({"norm": WHOLE, "domain_skew": [100]}),),
        "figures": FIGURES[:1],
    },
)
