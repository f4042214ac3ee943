"""A made-up study of domains: adaptation closes most of what an unseen domain costs, and costs a seen one little."""

from random import Random
from typing import Any

from syncnorm.config import Domains, Norm, Result, Run, describe, run_id
from syncnorm.study.plan.spec import Grid, Study
from syncnorm.study.plot import Plot
from syncnorm.study.report.plots import Columns, Curve, Gap, History, Profile
from syncnorm.study.rows import Row, finished_row

DOMAINS = ("digits", "digits-photo", "digits-fonts")
ARM = ("norm", "adapt")
LAYERS = ["conv1", "block1.conv", "block2.conv", "block3.conv", "classifier"]
SAMPLES = [8, 32, 128, 512]
LOW, HIGH = {"norm": "bn", "adapt": "none"}, {"norm": "bn", "adapt": "none", "unseen": ()}
ADAPTED = Gap("adapt_samples", ARM, low=LOW, high=HIGH, where={"unseen": ("digits-fonts",)})
PROFILE = Profile("norm", where={"adapt": "none", "unseen": ("digits-fonts",)})


def domains_study(*figures: Plot) -> Study:
    """Return a study with these plots, or one of every kind that the world has."""
    every = (
        Curve("unseen", ARM, where={"adapt": ["none", "tent"]}),
        ADAPTED,
        Gap("unseen", ARM, low=LOW, high={"norm": "domain_bn", "adapt": "tent"}, where={"adapt": ["none", "tent"]}),
        Columns(ARM, ("accuracy", "accuracy_seen", *(f"accuracy_{name}" for name in DOMAINS)), where=PROFILE.where),
        History("norm", "unseen_accuracy", where=PROFILE.where),
        PROFILE,
    )
    norms = ["bn", Norm("domain_bn", {"domain_affine": True}), "gn"]
    return Study(
        name="unseen-domains",
        question="What does a domain cost that training has not seen, and what does adaptation give back?",
        base=Run(world=Domains(domains=DOMAINS, unseen=("digits-fonts",))),
        vary={
            "norm": norms,
            "adapt": ["none", "tent"],
            "unseen": [(), ("digits-fonts",), ("digits", "digits-photo")],
        },
        seeds=4,
        also=(Grid({"norm": ["bn", "gn"], "adapt": ["adabn"], "adapt_samples": SAMPLES}),),
        figures=figures or every,
    )


def domain_metrics(run: Run) -> dict[str, float]:
    """Return metrics that depend on norm, adaptation, its samples, what is unseen, and the seed."""
    world = run.world
    assert isinstance(world, Domains)
    draw = Random(run_id(run))
    share = {"none": 0.0, "tent": 0.8}.get(world.adapt, 0.9 - 4 / (world.adapt_samples or 600))
    share += {"bn": 0.0, "domain_bn": 0.1, "gn": -0.2}[run.norm.name]
    seen = 0.95 + Random(run.seed).gauss(0, 0.004)
    unseen = seen - 0.2 * (1 - share)
    of = {name: (unseen if name in world.unseen else seen) + draw.gauss(0, 0.008) for name in DOMAINS}
    rest = [of[name] for name in DOMAINS if name not in world.unseen]
    tested = [of[name] for name in world.unseen] or rest
    return {
        "accuracy": sum(tested) / len(tested),
        "accuracy_seen": sum(rest) / len(rest),
        **{f"accuracy_{name}": value for name, value in of.items()},
        "loss": 1 - seen,
        "train_loss": 0.1,
    }


def domain_row(study: str, run: Run, **profile: Any) -> Row:
    """Return the row of a run, with its history and its profile of gradients by layer."""
    metrics, draw = domain_metrics(run), Random(run_id(run))
    epochs = range(1, 11)
    history = {
        "train_loss": [2.3 * 0.8**epoch for epoch in epochs],
        "seen_accuracy": [0.95 * (1 - 0.6**epoch) for epoch in epochs],
        "unseen_accuracy": [0.7 * (1 - 0.7**epoch) + draw.gauss(0, 0.01) for epoch in epochs],
    }
    steep = {"bn": 0.3, "domain_bn": 0.35, "gn": 0.8}[run.norm.name]
    values = [steep**depth * (1 + draw.uniform(0, 0.3)) for depth in range(len(LAYERS))]
    details = {"profiles": {"gradient_norm_initial": {"layers": LAYERS, "values": values} | profile}}
    evaluated_by = (
        "none" if run.norm.name == "gn" else "source" if metrics and run.world.adapt == "none" else "target"
    )  # type: ignore[union-attr]
    result = Result(run_id(run), describe(run), metrics, evaluated_by, 2.5, {"torch": "2.13.0"}, history, details)
    return finished_row(study, result)
