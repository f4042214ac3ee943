"""A made-up study of clients: methods that keep batch norm at home gain where clients differ."""

from random import Random
from typing import Any

from syncnorm.config import Clients, Result, Run, describe, run_id
from syncnorm.study.plan.spec import Grid, Study
from syncnorm.study.report.plots import Columns, Curve, Drift, History, Trade
from syncnorm.study.rows import Row, finished_row

ARM = ("method", "norm", "algorithm")
DOMAINS = ("digits", "digits-photo", "digits-fonts")
LAYERS = ["features.1", "features.5", "features.9", "head.norm"]
CLIENTS = 9


def clients_study() -> Study:
    """Return a study with a plot of every kind."""
    return Study(
        name="who-shares",
        question="Which part of a batch-norm layer should stay at home?",
        base=Run(world=Clients(count=CLIENTS, rounds=40, domains=DOMAINS, skew="dirichlet_by_class", alpha=0.3)),
        vary={"method": ["fedavg", "fedbn", "silobn"], "alpha": [0.05, 0.3, 1.0, 100.0]},
        seeds=3,
        also=(Grid({"norm": ["gn"], "alpha": [0.05, 0.3, 1.0, 100.0]}), Grid({"algorithm": ["fedprox"]})),
        figures=(
            Curve("alpha", ARM),
            History(ARM, "validation_accuracy", where={"alpha": 0.3}),
            Trade(ARM, where={"alpha": 0.3}),
            Columns(ARM, (*(f"accuracy_{name}" for name in DOMAINS), "accuracy"), where={"alpha": 0.3}),
            Columns(("method", "norm"), ("accuracy", "client_accuracy_worst", "staleness"), panel="alpha"),
            Drift("method", where={"alpha": 0.3, "algorithm": "fedavg"}),
        ),
    )


def client_metrics(run: Run) -> dict[str, float]:
    """Return metrics that depend on method, norm, algorithm, alpha and seed."""
    world = run.world
    assert isinstance(world, Clients)
    draw = Random(run_id(run))
    skew = 1 / (1 + (world.alpha or 1.0))
    level = {"fedavg": 0.9 - 0.25 * skew, "fedbn": 0.92 - 0.05 * skew, "silobn": 0.91 - 0.09 * skew}[world.method]
    if run.norm.name == "gn":
        level = 0.88 - 0.12 * skew
    accuracy = level + draw.gauss(0, 0.008)
    sent = {"fedavg": 41.0e6, "fedbn": 37.5e6, "silobn": 39.0e6}[world.method] + draw.gauss(0, 2e5)
    found = {
        "accuracy": accuracy,
        "client_accuracy_worst": accuracy - 0.1 - 0.1 * skew,
        "loss": 1 - accuracy,
        "bytes_up": sent / 2,
        "bytes_down": sent / 2,
        "bytes_total": sent,
        "staleness": 0.5,
        **{f"accuracy_{name}": accuracy + draw.gauss(0, 0.02) for name in DOMAINS},
    }
    return found | ({} if run.norm.name == "gn" else {"reestimated_accuracy": accuracy + 0.01})


def client_row(study: str, run: Run, **changes: Any) -> Row:
    """Return the row of a run, with its history, its drift and its partition card."""
    world = run.world
    assert isinstance(world, Clients)
    metrics, draw = client_metrics(run), Random(run_id(run))
    reached = metrics["accuracy"]
    rounds = range(1, world.rounds + 1)
    history = {
        "train_loss": [2.3 * 0.93**number for number in rounds],
        "validation_accuracy": [reached * (1 - 0.9 * 0.9**number) + draw.gauss(0, 0.01) for number in rounds],
    }
    far = {"fedavg": 1.0, "fedbn": 0.6, "silobn": 0.8}[world.method]
    drift_of = list(range(world.count))
    drift = {
        "layers": LAYERS,
        "clients": drift_of,
        "values": [
            [far * (0.1 + 0.1 * depth + 0.3 * (client % 3)) + abs(draw.gauss(0, 0.03)) for client in drift_of]
            for depth in range(len(LAYERS))
        ],
    }
    details = {"partition": card(world, run.seed)} | ({} if run.norm.name == "gn" else {"drift": drift})
    evaluated_by = "none" if run.norm.name == "gn" else "averaged (clients)" if world.method == "fedavg" else "own"
    result = Result(
        run_id(run), describe(run), metrics, evaluated_by, 2.5, {"torch": "2.13.0"}, history, details | changes
    )
    return finished_row(study, result)


def card(world: Clients, seed: int) -> dict[str, Any]:
    """Return a partition card as the data package writes it."""
    draw = Random(f"{world.alpha}/{seed}")
    clients = []
    for client in range(world.count):
        mix = [draw.gammavariate(world.alpha or 1.0, 1.0) + 1e-9 for _ in range(10)]
        histogram = [round(120 * part / sum(mix)) for part in mix]
        domain = world.domains[client % len(world.domains)]
        one = {"client": client, "domain": domain, "held_out": False, "train": sum(histogram), "validation": 0}
        clients.append({**one, "histogram": histogram, "noise": 0.0})
    return {
        "method": world.skew,
        "alpha": world.alpha,
        "options": {},
        "seed": seed,
        "count": world.count,
        "held_out": 0,
        "noise": 0.0,
        "classes": [str(digit) for digit in range(10)],
        "domains": [{"name": name, "train": 360, "test": 100} for name in world.domains],
        "clients": clients,
    }
