"""`pip install syncnorm[federated]` is enough for simulations and Flower's apps, and a client imports little."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_STUDIES = {"lightning", "wandb", "datasets", "matplotlib", "tyro", "safetensors"}
MODULES = {"scikit-learn": "sklearn", "pillow": "PIL"}

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCK:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""
PROGRAM = """
import json
from syncnorm.config import Clients, Data, Run
from syncnorm.federated import CohortGrid, client_app, server_app, simulate

world = Clients(count=3, rounds=1, engine="cohort", method="fedbn")
simulate(Run(data=Data("digits", train_limit=100, test_limit=50), world=world))
text = {"data": {"name": "digits", "train_limit": 100, "test_limit": 50}, "world": {"count": 3, "rounds": 1}}
CohortGrid(client_app, 3, run_config={"run": json.dumps(text)}).run_app(server_app)
"""


def names(extra: str) -> set[str]:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    found = {one.partition(">")[0].partition("[")[0] for one in listed}
    return {MODULES.get(name, name) for name in found}


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.mark.dist
def test_the_extra_is_enough() -> None:
    block = (OF_STUDIES | names("study")) - names("federated") - {"rich"}  # Flower needs rich itself
    assert "lightning" in block
    done = run(f"BLOCK = {block!r}\n{BLOCKED}\n{PROGRAM}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"accuracy"' in done.stdout


@pytest.mark.dist
def test_a_client_imports_only_what_it_needs() -> None:
    heavy = sorted(OF_STUDIES | {"sklearn", "scipy", "PIL", "ray", "torchmetrics", "torch._dynamo"})
    done = run(
        f"import sys, syncnorm.federated.flower.apps\nprint([name for name in {heavy!r} if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
