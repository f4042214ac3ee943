"""A policy and an algorithm of one's own: registered, checked, and the same on every engine."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from small_runs import small_run

import syncnorm
from syncnorm.errors import UserError
from syncnorm.federated import ALGORITHMS, POLICIES, Algorithm, CohortGrid, Policy, client_app
from syncnorm.federated.algorithms.fedprox import FedProx
from syncnorm.federated.flower.wire import run_as_text

THESIS = '''
"""A module of somebody's thesis."""

import torch

import syncnorm
from syncnorm.federated import AT_LEAST_0, POLICIES, Algorithm, Option, Policy

POLICIES["mirror"] = Policy("shared", "local", "the same thesis")


@syncnorm.register_algorithm("thesis")
class Thesis(Algorithm):
    """Uses every hook: clients lean against the server's velocity, minus their own last change."""

    OPTIONS = {"mu": Option(0.1, AT_LEAST_0)}

    def client_inputs(self, message, kept):
        return {name: v - kept[name] if name in kept else v for name, v in message.items()}

    def local_term(self, parameters, received, inputs):
        pull = [(value - received[name]).square().sum() for name, value in parameters.items()]
        lean = [(inputs[name] * value).sum() for name, value in parameters.items()]
        return self.options["mu"] * torch.stack(pull + lean).sum()

    def client_result(self, trained):
        change = {name: value - trained.before[name] for name, value in trained.after.items()}
        norm = torch.stack([value.square().sum() for value in change.values()]).sum()
        return {"norm": norm / trained.steps * trained.lr}, change

    def server_memory(self, parameters):
        return {"velocity": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def message(self, memory):
        return memory["velocity"]

    def server_step(self, round_, memory):
        norms = torch.stack([reply.extra["norm"] for reply in round_.replies])
        trust = 1 / (1 + (round_.weights * norms).sum())
        velocity = {
            name: 0.5 * v + trust * (round_.average[name] - round_.state[name])
            for name, v in memory["velocity"].items()
        }
        return {name: round_.state[name] + v for name, v in velocity.items()}, {"velocity": velocity}
'''

PROGRAM = """
import json
import sys
from dataclasses import replace

import thesis
from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import simulate

world = Clients(count=4, rounds=3, participation=0.75, skew="dirichlet_by_class", alpha=0.5)
run = Run(
    data=Data("digits", size=8, train_limit=200, test_limit=80),
    world=world,
    optim=Optim(lr=0.02, momentum=0.0),
    precision="float64",
)
found = {}
for name, fields in json.loads(sys.argv[1]).items():
    result = simulate(replace(run, world=replace(world, **fields)))
    found[name] = {**result.metrics, "losses": result.history["train_loss"]}
print(json.dumps(found))
"""


def played(folder: Path, worlds: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the metrics of runs in a process of their own, which imports `thesis` from a folder."""
    page = (Path(syncnorm.__file__).parents[1] / "docs" / "policies.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]  # register "mine" and "my_prox"
    assert len(blocks) == 2
    (folder / "thesis.py").write_text("\n".join([THESIS, *blocks]))
    (folder / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(Path(syncnorm.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "program.py", json.dumps(worlds)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.dist
def test_a_registered_policy_and_algorithm_give_the_same_on_every_engine(tmp_path: Path) -> None:
    own = {"method": "mine", "algorithm": "thesis"}
    found = played(
        tmp_path,
        {engine: {**own, "engine": engine} for engine in ("loop", "cohort", "flower")}
        | {"without": {**own, "algorithm": "fedavg", "engine": "loop"}, "other": {**own, "method": "fedbn"}},
    )
    here = found["loop"]
    for engine in ("cohort", "flower"):
        assert found[engine].keys() == here.keys()
        for name, value in here.items():
            assert found[engine][name] == pytest.approx(value, rel=1e-10, abs=1e-10), (engine, name)
    assert abs(found["without"]["loss"] - here["loss"]) > 1e-3
    assert abs(found["other"]["loss"] - here["loss"]) > 1e-3


@pytest.mark.dist
def test_an_algorithm_written_anew_is_the_one_that_is_there(tmp_path: Path) -> None:
    theirs = {"algorithm": "fedprox", "algorithm_options": {"mu": 0.2}}
    worlds = {
        f"{engine} {method} {name}": {"engine": engine, "method": method, **fields}
        for engine, method in (("loop", "mirror"), ("cohort", "mirror"), ("cohort", "fedtan"))
        for name, fields in (("mine", {"algorithm": "my_prox"}), ("theirs", theirs), ("none", {}))
    }
    found = played(tmp_path, worlds)
    for name, metrics in found.items():
        if name.endswith("mine"):
            same = found[name.replace("mine", "theirs")]
            for metric, value in metrics.items():
                assert same[metric] == pytest.approx(value, rel=1e-10, abs=1e-10), (name, metric)
            assert abs(found[name.replace("mine", "none")]["loss"] - metrics["loss"]) > 1e-6


def test_a_supernode_without_the_module_says_what_its_app_has_to_carry() -> None:
    grid = CohortGrid(client_app, 1)
    for world, words in (
        ({"method": "mine"}, "federated policy 'mine'"),
        ({"algorithm": "mine"}, "algorithm 'mine'"),
    ):
        config = ConfigRecord({"run": run_as_text(small_run(**world)), "server-round": 1})
        (reply,) = grid.send_and_receive([Message(RecordDict({"config": config}), 1, "query.kept")])
        assert f"unknown {words}" in reply.error.reason.replace("world.", "")
        assert "the app that this SuperNode runs has to carry the module that registers it" in reply.error.reason


def misspelt() -> None:
    class Mine(Algorithm):
        def local_terms(self) -> None:
            """Never be called."""

    syncnorm.register_algorithm("mine")(Mine)


def plain_option() -> None:
    class Mine(Algorithm):
        OPTIONS = {"mu": 0.1}  # type: ignore[dict-item]  # noqa: RUF012

    syncnorm.register_algorithm("mine")(Mine)


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (lambda: syncnorm.register_algorithm("fedprox")(FedProx), "algorithm 'fedprox' is registered already, by"),
        (lambda: syncnorm.register_algorithm("my prox")(FedProx), "a name is a text without spaces"),
        (lambda: syncnorm.register_algorithm("mine")(int), "make it a subclass of syncnorm.federated.Algorithm."),  # type: ignore[type-var]
        (plain_option, "option mu of algorithm 'mine' is 0.1: write Option(0.1)."),
        (misspelt, "'local_terms': did you mean 'local_term'?"),
        (lambda: syncnorm.register_policy("fedbn", POLICIES["fedbn"]), "policy 'fedbn' is registered already, by"),
        (lambda: syncnorm.register_policy("mine", "fedbn"), "federated policy 'mine' is 'fedbn': write Policy("),  # type: ignore[arg-type]
        (lambda: Policy("Shared", "average", "x"), "unknown affine of a policy 'Shared': did you mean 'shared'?"),  # type: ignore[arg-type]
        (lambda: Policy("shared", "averaged", "x"), "unknown statistics of a policy 'averaged': did you mean 'ave"),  # type: ignore[arg-type]
        (lambda: Policy("shared", "average", "x", rest="shard"), "unknown rest of a policy 'shard': did you mean"),  # type: ignore[arg-type]
        (lambda: Policy("shared", "average", "x", training="freeze"), "unknown training of a policy 'freeze'"),  # type: ignore[arg-type]
        (lambda: Policy("shared", "average", "x", statistics_source="sen"), "policy 'sen': did you mean 'seen'?"),  # type: ignore[arg-type]
        (lambda: Policy("shared", "average", 3), "source of a policy is 3: it must be a text."),  # type: ignore[arg-type]
        (lambda: Policy("shared", "average", "x", options={"momentun": 1}), "did you mean 'momentum'?"),
        (lambda: Policy("shared", "average", "x", options={"momentum": 2}), "it must be a number from 0 to 1."),
        (lambda: Policy("shared", "average", "x", training="frozen"), 'needs options={"frozen_from": 0.5}'),
        (lambda: Policy("shared", "average", "x", rest="wasserstein"), 'needs options={"own_share": 0.5}'),
        (lambda: Policy("shared", "average", "x", statistics_source="seen"), 'needs training="running"'),
    ],
)
def test_a_mistake_gets_its_sentence_and_registers_nothing(mistake: Callable[[], object], sentence: str) -> None:
    before = dict(ALGORITHMS), dict(POLICIES)
    with pytest.raises(UserError) as caught:
        mistake()
    assert sentence in str(caught.value)
    assert (dict(ALGORITHMS), dict(POLICIES)) == before


def test_a_policys_first_values_are_the_owner_of_affine_of_statistics_and_the_source() -> None:
    row = Policy("local", "pooled", "a thesis")
    assert (row.affine, row.statistics, row.source) == ("local", "pooled", "a thesis")
    assert row.personal
