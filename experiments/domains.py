"""What do per-domain statistics buy when domain labels are known at test time, and what when they are not?

This is FedBN's question (arXiv 2102.07623) for central training: each of six digits domains is left out of training
once. On seen domains, a sample's domain may be known (each domain's own statistics) or not (all domains pooled, or
domains weighted by similarity, as in BNE). The domain left out has no statistics, so the choices are to adapt to its
samples (AdaBN) or to each batch (prediction-time batch norm, the mix of Schneider et al., alpha-BN, TENT), or to use
a norm that needs no adaptation (GN, MixStyle, IABN).

Speaks to: BNE (arXiv 2011.12672): PACS, ResNet-18, 83.1 % on average over the domain left out, as listed by others.
           TENT (arXiv 2006.10726), its repository: CIFAR-10-C at the highest severity, WRN-28-10, mean error 43.5 %
           as trained, 20.4 % with each batch's statistics, 18.6 % with TENT. Schneider et al. (arXiv 2006.16971):
           ImageNet-C, ResNet-50, mean corruption error 76.7 % as trained, 65.0 % mixed with a batch, 62.2 % with
           all samples' statistics.
Run:       syncnorm run experiments/domains.py [--quick]

Every domain has at most 280 training samples, and digits of its own. Domains share one scale, so that their
differences are preserved. Lines that differ only in their adaptation share one trained model. The learning rate is
tuned for every norm on validation samples of the domains seen, with two of the domains left out in turn; group norm's
number of groups with it. Nothing of a domain left out chooses anything.
"""

from dataclasses import replace

from syncnorm.config import Data, Domains, Norm, Optim, Run
from syncnorm.data import DOMAINS
from syncnorm.study import Choice, Columns, Curve, Grid, LogUniform, Plot, Study, Trade, Tune

LINE = ("norm", "norm.options", "model_options", "adapt")
SHUFFLED = {"test_order": "shuffled"}
AFFINE = Norm("domain_bn", {"domain_affine": True})
TUNE = Tune(
    {"lr": LogUniform(0.01, 3.0)},
    own={"gn": {"norm.options.groups": Choice([2, 4, 8])}},
    per=("norm", "norm.options", "model_options"),
    trials=8,
    halve=True,
    shared=False,
)
SHOWN = ["none", "adabn", "alpha", "ensemble"]
BATCHWISE = ["none", "prediction", "mix", "alpha", "tent"]


def leave_one_out(name: str, question: str, base: Run, seeds: int = 10, quick_epochs: int = 3) -> Study:
    """Return the study that leaves out each domain of `base` once, with every norm and adaptation."""
    assert isinstance(base.world, Domains)
    unseen = [(domain,) for domain in base.world.domains]
    folds = {"unseen": unseen[:2], "adapt": ["none"], "test_order": ["shuffled"]}
    mixing = {"model_options": [{**base.model_options, "mix_style": 0.5}], "norm": ["bn"]}
    return Study(
        name=name,
        question=question,
        base=base,
        vary={
            "norm": ["bn"],
            "unseen": unseen,
            "adapt": ["none", "adabn", *BATCHWISE[1:]],
            "test_order": ["shuffled", "sorted"],
        },
        seeds=seeds,
        tune=replace(TUNE, at=folds),
        also=(
            Grid({"norm": ["domain_bn"], "unseen": unseen, "adapt": ["none", "pooled", "ensemble", "adabn"]}),
            Grid({"norm": [AFFINE], "unseen": unseen, "adapt": ["none", "pooled", "ensemble"]}),
            Grid({"norm": ["gn"], "unseen": unseen}),
            Grid({**mixing, "unseen": unseen, "adapt": ["none", "adabn"]}),
            Grid({"norm": ["iabn"], "unseen": unseen, "test_order": ["shuffled", "sorted"]}),
        ),
        figures=plots(base),
        quick={
            "base": replace(base, optim=replace(base.optim, epochs=quick_epochs), evaluate_every=None),
            "vary": {"norm": ["bn"], "unseen": unseen[-2:], "adapt": ["none", "adabn", "prediction", "tent"]},
            "also": (
                Grid({"norm": ["domain_bn"], "unseen": unseen[-2:], "adapt": ["none", "ensemble", "adabn"]}),
                Grid({"norm": ["gn"], "unseen": unseen[-2:]}),
            ),
            "seeds": 2,
            "tune": replace(TUNE, trials=2, seeds=1, at={**folds, "unseen": unseen[-1:]}),
        },
    )


def plots(base: Run) -> tuple[Plot, ...]:
    """Return the plots of the study of `base`."""
    plain = {"model_options": base.model_options}
    return (
        Columns(
            line=LINE,
            metrics=("accuracy", "accuracy_seen"),
            mean_over=("unseen",),
            where=SHUFFLED,
            title="Accuracy on the domain left out, and on those seen, mean over which one is left out",
        ),
        Trade(
            line=LINE,
            x_metric="accuracy_seen",
            mean_over=("unseen",),
            where={**SHUFFLED, "norm": ["bn", "domain_bn", "gn", "iabn"], "adapt": SHOWN, **plain},
            title="What each buys on domains that training has seen, and on the one left out",
        ),
        Curve(
            x="unseen",
            line=LINE,
            where={**SHUFFLED, "norm": ["bn", "gn"], "adapt": ["none", "adabn", "prediction", "mix", "tent"]},
            title="Accuracy on the domain left out: one set of statistics in training",
        ),
        Curve(
            x="unseen",
            line=LINE,
            where={**SHUFFLED, "norm": ["domain_bn"]},
            title="Accuracy on the domain left out: statistics for each domain in training",
        ),
        Curve(
            x="adapt",
            line=("norm", "test_order"),
            mean_over=("unseen",),
            where={"norm": ["bn", "iabn"], "adapt": BATCHWISE, "model_options": base.model_options},
            title="Accuracy on the domain left out, its test shuffled or sorted by label",
        ),
    )


BASE = Run(
    data=Data("domains", train_limit=280, validation=0.15),
    model="small_cnn",
    world=Domains(domains=tuple(DOMAINS), batch=32, test_batch=64),
    optim=Optim(lr=0.05, epochs=16),
    evaluate_every=16,
)

STUDY = leave_one_out(
    "domains",
    "What do per-domain statistics buy when domain labels are known at test time, and what when they are not?",
    BASE,
)
