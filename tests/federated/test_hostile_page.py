"""docs/hostile.md says what the tables say, and what it says of statistics holds to the last digit."""

import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_runs import small_run, start
from torch import Tensor, nn

import syncnorm
from syncnorm.federated import AGGREGATIONS, ATTACKS, Aggregation
from syncnorm.federated.client.client import measure
from syncnorm.federated.messages import Reply
from syncnorm.federated.server.rounds import Rounds

PAGE = (Path(syncnorm.__file__).parents[1] / "docs" / "hostile.md").read_text()


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the rows of the table with this heading."""
    _, rest = PAGE.split(heading)
    lines = rest.strip().split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_the_page_has_every_aggregation_attack_and_hook() -> None:
    rows = rows_below("| name | parameters | averaged and pooled statistics, counters | options |\n")
    options = {
        name: ", ".join(f"{option} {value.default}" for option, value in kind.OPTIONS.items())
        for name, kind in AGGREGATIONS.items()
    }
    assert {row[0]: row[-1] for row in rows} == {f"`{name}`": text for name, text in options.items()}
    for row in rows[1:]:  # each names the source that its class names
        kind = AGGREGATIONS[row[0].strip("`")]
        source = row[1].rpartition("arXiv ")[2].strip(")")
        assert source in (inspect.getdoc(kind) or "")
    attacks = [[f"`{name}`", " ".join((inspect.getdoc(attack) or "").split())] for name, attack in ATTACKS.items()]
    assert rows_below("| name | what is sent |\n") == attacks
    hooks = {f"`{name}`" for name in dir(Aggregation) if not name.startswith("_")}
    assert {row[0] for row in rows_below("| hook | what it gives |\n")} == hooks


def test_what_was_measured_is_what_the_page_says() -> None:
    text = (Path(syncnorm.__file__).parents[1] / "results/benchmarks/hostile.txt").read_text()
    plain = float(text.split("weighted mean without attackers: ")[1].split()[0])
    lines = text.split("krum\n")[1].split("\n\n")[0].splitlines()
    lost = {line.split()[0]: float(line.split("(")[1].strip(") ")) for line in lines if "(" in line}
    assert lost.keys() == {"none", *ATTACKS}
    worst = max(lost.values())
    assert worst <= 2
    assert f"reaches {plain} %" in PAGE
    assert f"at most {worst} points" in PAGE
    fuzzed = int(text.split("2. Fuzzed replies: ")[1].split()[0])
    assert fuzzed >= 1000
    assert f"{fuzzed:,} fuzzed replies" in PAGE


@pytest.mark.usefixtures("registries")
def test_the_blocks_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    for block in (part.split("```")[0] for part in PAGE.split("```python\n")[1:]):
        exec(compile(block, "a block of the manual", "exec"), {})
    assert capsys.readouterr().out == "tensor(-1.0000) tensor(2.5000)\n"
    assert "midpoint" in AGGREGATIONS


class AtTheInput(nn.Module):
    """A batch norm on the pixels themselves."""

    def __init__(self, in_channels: int, classes: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(64 * in_channels)
        self.head = nn.Linear(64 * in_channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits: Tensor = self.head(self.bn(x.flatten(1)))
        return logits


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("a_model_with_a_norm_at_its_input")
    module.net = AtTheInput  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)


def run_of(**world: Any) -> Rounds:
    """Return a run with the model above; of its four clients one has a single sample."""
    run = small_run(count=4, seed=3, skew="quantity", rounds=1, min_batch=1, **world)
    return start(replace(run, model="a_model_with_a_norm_at_its_input:net", model_options={}))


def sent_by(rounds: Rounds, client: int) -> Reply:
    """Return a client's reply."""
    (reply,) = rounds.network.train([client], rounds.broadcast)
    return reply


def images(rounds: Rounds, client: int) -> Tensor:
    """Return a client's training images as rows of pixels."""
    people = rounds.federation.population
    return people.x[rounds.federation.schedule.samples(client)].flatten(1)


def test_of_one_value_the_mean_is_the_value() -> None:
    rounds = run_of(method="fbn")
    client = next(k for k in range(4) if len(images(rounds, k)) == 1)
    reply = sent_by(rounds, client)
    assert torch.equal(reply.state["bn.running_mean"], images(rounds, client)[0])
    assert reply.state["bn.running_var"].eq(0).all()


def test_a_running_average_of_one_batch_tells_the_batchs_mean() -> None:
    rounds = run_of(method="fedavg", local_steps=1)
    before = rounds.server.state["bn.running_mean"].clone()
    client = max(range(4), key=lambda k: len(images(rounds, k)))
    batch = rounds.federation.population.x[rounds.federation.schedule.plan(client, 0).batches[0]].flatten(1)
    after = sent_by(rounds, client).state["bn.running_mean"]
    torch.testing.assert_close((after - 0.9 * before) / 0.1, batch.mean(0), rtol=1e-12, atol=1e-12)


def test_counts_and_means_of_two_times_tell_what_came_in_between() -> None:
    rounds = run_of(method="sbn")
    client = max(range(4), key=lambda k: len(images(rounds, k)))
    people, samples = rounds.federation.population, rounds.federation.schedule.samples(client)
    later = measure(rounds.federation, client, rounds.server.state)["bn"]
    rounds.federation.schedule.samples = lambda _: samples[:-1]  # type: ignore[method-assign]
    earlier = measure(rounds.federation, client, rounds.server.state)["bn"]
    assert (later.count, earlier.count) == (len(samples), len(samples) - 1)
    newcomer = later.count * later.mean - earlier.count * earlier.mean
    torch.testing.assert_close(newcomer, people.x[samples[-1]].flatten(), rtol=1e-9, atol=1e-9)
