"""A run goes to its world, and a wrong one is told the way."""

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import syncnorm
from syncnorm import worlds
from syncnorm.config import Clients, Devices, Domains, Execution, Norm, Result, Run, describe, run_id
from syncnorm.domains import fit as fit_domains
from syncnorm.errors import UserError
from syncnorm.federated import simulate
from syncnorm.training import fit as fit_devices

RUNS = [Run(world=Devices()), Run(world=Clients()), Run(world=Domains(("digits",)))]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.world.kind)
def test_a_run_goes_to_its_own_world(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    world, heard = worlds.world_of(run), []

    def fit(run: Run, execution: Execution) -> Result:
        return Result(run_id(run), describe(run), {}, run.world.kind, 0.0, {})

    monkeypatch.setattr(world, "fit", fit)
    monkeypatch.setattr(world, "check", lambda run: heard.append("check"))
    monkeypatch.setattr(world, "forget", lambda: heard.append("forget"))
    assert syncnorm.fit(run).evaluated_by == run.world.kind
    worlds.check(run)
    worlds.forget()
    assert heard == ["check", "forget"]


@pytest.mark.parametrize(
    ("fit", "run", "way"),
    [
        (simulate, RUNS[0], "one of devices, not of clients: give it to syncnorm.training.fit"),
        (simulate, RUNS[2], "one of domains, not of clients: give it to syncnorm.domains.fit"),
        (fit_domains, RUNS[1], "one of clients, not of domains: give it to syncnorm.federated.simulate"),
        (fit_devices, RUNS[2], "one of domains, not of devices: give it to syncnorm.domains.fit"),
    ],
)
def test_a_run_of_another_world_is_told_the_way(fit: Any, run: Run, way: str) -> None:
    with pytest.raises(UserError, match=way):
        fit(run)


@pytest.mark.parametrize("fit", [syncnorm.fit, fit_devices, fit_domains, simulate])
@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (None, "this is a NoneType, not a run"),
        ({"model": "small_cnn"}, "this is a dict, not a run"),
        (Run(norm="gn"), "norm is 'gn': it must be a Norm, so write Norm\\('gn'\\)"),  # type: ignore[arg-type]
        (Run(data="digits"), "data is 'digits': it must be a Data, so write Data\\('digits'\\)"),  # type: ignore[arg-type]
        (Run(world="devices"), "world is 'devices': it must be a Devices or a Clients or a Domains"),  # type: ignore[arg-type]
        (Run(model=Norm()), "model is Norm.*: it must be a text, so write 'package.module:factory', or register"),  # type: ignore[arg-type]
    ],
)
def test_every_door_checks_types_with_the_same_sentence(fit: Any, run: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit(run)


def test_no_world_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys; from syncnorm import worlds; worlds.forget();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'syncnorm.training', 'syncnorm.federated')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_checkpoint_is_of_a_run_and_of_the_source_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "edited_net.py"
    found = []
    for width in (1, 2, 1):
        source.write_text(f"import torch\n\ndef net(classes):\n    return torch.nn.LazyLinear({width})\n")
        sys.modules.pop("edited_net", None)
        importlib.invalidate_caches()
        found.append(worlds.checkpoint_id(Run(model="edited_net:net")))
    assert found[0] == found[2] != found[1]
    assert all(name.startswith(run_id(Run(model="edited_net:net"))) for name in found)
