"""Real ranks and virtual ranks are the same: parameters, every rank's buffers, losses, to 1e-10 in float64."""

import json
from pathlib import Path

import pytest
import torch
from processes import DEVICES, torchrun
from twin_program import RUNS, state_after

NORMS = {
    "classification": [
        *("bn", "sync_bn", "gn", "brn", "mabn", "bn with workers"),
        *("brn sync", "mabn sync"),
        *("sync_bn in bf16-mixed", "brn in bf16-true"),
    ],
    "segmentation": ["bn", "sync_bn", "gn", "frozen_bn", "mabn"],
}
SHORT = 0.05
"""How far bfloat16 may part them: gradients by 2 % (test_precision.py), so parameters by that of the way they go in a
dozen steps of rate 0.05, and weights that are kept in it by 12^(1/2) / 256."""
PROGRAM = Path(__file__).with_name("twin_program.py")


@pytest.mark.dist
@pytest.mark.parametrize(("task", "ranks"), [("classification", 2), ("classification", 4), ("segmentation", 2)])
def test_torchrun_and_virtual_ranks_train_the_same_model(task: str, ranks: int, tmp_path: Path) -> None:
    out = tmp_path / "states.pt"
    torchrun(ranks, PROGRAM, str(out), json.dumps(NORMS[task]), task, imports=DEVICES)
    real = torch.load(out, weights_only=True)
    for norm in NORMS[task]:
        virtual = state_after(RUNS[task](norm, ranks, "virtual"), None)
        assert real[norm].keys() == virtual.keys()
        assert norm.startswith("bn") == any(name.endswith(".means") for name in virtual)
        for name, value in virtual.items():
            if name.endswith(".gradients"):
                value = value * ranks  # of the mean over all samples, a virtual rank sees its part
            limit = SHORT if "bf16" in norm else 1e-10
            torch.testing.assert_close(
                real[norm][name], value, rtol=limit, atol=limit, msg=lambda m, n=f"{norm}, {name}": f"{n}: {m}"
            )
