"""Trained networks in and out of evaluation mode, with other momenta, and on the samples that trained them."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from experiments.claim_networks import BASE, DROPOUT
from experiments.claims.claim import Claim, Region
from experiments.claims.evidence import Experiment, Setting, Values
from experiments.claims.layers import SERIES, START
from experiments.claims.loop import accuracy, data
from experiments.claims.measures import of_rows
from syncnorm.config import Execution, Norm, silent
from syncnorm.training import fit
from syncnorm.training.saved import load_model

BATCH, FEW = 32, 2
LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "bn": ("bn", {}),
    "none dropout": ("none", DROPOUT),
}
"""Norm and options of the model of the study's lines that are trained once more here."""
OLD, NEW = 0.99, 0.01
"""The weight of the old statistics, as Keras writes it, and what torch writes for the same rule."""


def trained(norm: Norm, options: dict[str, Any], rate: float, seed: int, quick: bool) -> nn.Module:
    """Return the network that the study trains, in evaluation mode."""
    optim = replace(BASE.optim, lr=rate, epochs=1 if quick else BASE.optim.epochs)
    run = replace(BASE, norm=norm, model_options=options, optim=optim, seed=seed)
    with TemporaryDirectory() as folder:
        fit(run, Execution(model=Path(folder), report=silent))
        return load_model(folder).model


@torch.no_grad()
def in_training_mode(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> float:
    """Return the accuracy where eval() was forgotten: each batch normalised with its own statistics."""
    model = deepcopy(model).train()
    right = sum(
        int((model(x[at : at + batch]).argmax(1) == y[at : at + batch]).sum()) for at in range(0, len(y), batch)
    )
    return right / len(y)


def forgotten(seed: int, setting: Setting) -> Values:
    """Return the accuracy of a trained network in evaluation mode, and without eval() in several orders."""
    model = trained(Norm("bn"), {}, setting.rates["bn"], seed, setting.quick)
    x, y = data(seed).test_x, data(seed).test_y
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    by_class = torch.argsort(y, stable=True)
    return {
        "eval": accuracy(model, x, y),
        "shuffled": in_training_mode(model, x[shuffled], y[shuffled], BATCH),
        "by class": in_training_mode(model, x[by_class], y[by_class], BATCH),
        "few": in_training_mode(model, x[shuffled], y[shuffled], FEW),
    }


def momentum(seed: int, setting: Setting) -> Values:
    """Return the accuracy with each convention's number for the momentum of a slow average."""
    split = data(seed)
    found = {}
    for name, value in (("mistaken", OLD), ("right", NEW)):
        norm = Norm("bn", {"momentum": value})
        model = trained(norm, {}, setting.rates["bn"], seed, setting.quick)
        found[name] = accuracy(model, split.test_x, split.test_y)
    return found


def gap(seed: int, setting: Setting) -> Values:
    """Return the accuracy on training samples minus that on test samples, both in evaluation mode."""
    split, found = data(seed), {}
    for line, (norm, options) in LINES.items():
        model = trained(Norm(norm), options, setting.rates[line], seed, setting.quick)
        train, test = accuracy(model, split.train_x, split.train_y), accuracy(model, split.test_x, split.test_y)
        found |= {f"{line} train": train, f"{line} test": test, f"{line} gap": train - test}
    return found


def points(a: float, b: float) -> float:
    """Return a - b in points."""
    return 100 * (a - b)


EXPERIMENTS = (
    Experiment("forgotten", 6, forgotten, ("bn",)),
    Experiment("momentum", 6, momentum, ("bn",)),
    Experiment("gap", 6, gap, tuple(LINES)),
)

NETWORK = "the study's perceptron at its tuned rate, digits"


def forgetting(name: str, key: str, text: str, how: str) -> Claim:
    """Return a claim about the accuracy without eval()."""
    return Claim(
        name,
        text,
        START,
        "",
        f"Test accuracy in evaluation mode minus that in training mode, {how}; {NETWORK}. A point is what counts.",
        "points",
        Region(low=1),
        of_rows("forgotten", "eval", key, of=points),
    )


CLAIMS = (
    forgetting(
        "forgotten-eval",
        "shuffled",
        "Forgetting eval() costs accuracy.",
        "with shuffled batches of 32",
    ),
    forgetting(
        "forgotten-eval-sorted",
        "by class",
        "Forgetting eval() costs accuracy where test batches are not shuffled.",
        "with batches of 32 sorted by class",
    ),
    forgetting(
        "forgotten-eval-few",
        "few",
        "Forgetting eval() costs accuracy where test batches are small.",
        "with shuffled batches of 2",
    ),
    Claim(
        "momentum",
        "A momentum in the other framework's convention costs accuracy.",
        START,
        "",
        "Test accuracy with torch's 0.01 minus that with Keras's 0.99, which is the same rule written for the weight "
        f"of the old statistics; {NETWORK}. A point is what counts.",
        "points",
        Region(low=1),
        of_rows("momentum", "right", "mistaken", of=points),
    ),
    Claim(
        "regularises",
        "Batch norm regularises: the gap between training and test is smaller.",
        SERIES,
        "",
        f"Training minus test accuracy, without batch norm minus with, both in evaluation mode; {NETWORK}.",
        "points",
        Region(low=0),
        of_rows("gap", "none gap", "bn gap", of=points),
    ),
    Claim(
        "regularises-dropout",
        "Batch norm regularises as much as dropout does.",
        SERIES,
        "",
        "The gap with dropout of 0.2 and without batch norm, minus the gap with batch norm and without dropout; "
        f"{NETWORK}.",
        "points",
        Region(low=0),
        of_rows("gap", "none dropout gap", "bn gap", of=points),
    ),
)
