"""The doctor beside torch-audit: what each finds in the same models with the same planted fault.

    python benchmarks/doctor_peer.py [NAME...] [--out results/doctor_peer.txt]
                                                        # needs both: pip install --no-deps timm torch-audit

Each fault is planted alone into one batch norm of a model of timm, in the middle of it, or lies in how the model is
trained. syncnorm's `diagnose` and torch-audit's `audit_dynamic` (with static, init and runtime rules) then look at
the model, its optimiser and one step on the same batch. The columns say whether a tool finds the fault: which of its
checks or rules report something that they do not report of the healthy model. torch-audit looks at far more than
norms; only what is about these faults is compared.
"""

import argparse
import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from doctor import FAULTS as OF_A_LAYER
from doctor import fits
from peers.blocks import Blocks
from peers.no_torchvision import stand_in
from torch import Tensor, nn

import syncnorm
from syncnorm.doctor import diagnose
from syncnorm.environment import environment

NAMES = ["resnet18", "mobilenetv2_100", "densenet121"]
SIDE = 32
Found = Counter[tuple[str, str]]
"""How often a check or rule has found something, by its name and the layer."""


@dataclass(frozen=True)
class Planted:
    """A model with a fault, and how it is trained."""

    model: nn.Module
    batch: int = 16
    decay: bool = False


def of_a_layer(check: str) -> Callable[[nn.Module, str], Planted]:
    """Return a function that plants a fault of `benchmarks/doctor.py`."""

    def plant(model: nn.Module, where: str) -> Planted:
        if check == "left_in_training":
            model.eval()
        OF_A_LAYER[check](model, where)
        return Planted(model)

    return plant


def dead_bias(model: nn.Module, where: str) -> Planted:
    """Give the convolution before a norm a bias."""
    layers = dict(model.named_modules())
    names = list(layers)
    before: Any = next(layers[n] for n in reversed(names[: names.index(where)]) if isinstance(layers[n], nn.Conv2d))
    before.bias = nn.Parameter(torch.zeros(before.out_channels))
    return Planted(model)


def twice(model: nn.Module, where: str) -> Planted:
    """Call one norm a second time, on what comes out of it."""
    norm = model.get_submodule(where)
    model.set_submodule(where, nn.Sequential(norm, nn.Conv2d(*2 * (int(norm.num_features),), 1, bias=False), norm))  # type: ignore[arg-type]
    return Planted(model)


def stays(model: nn.Module, where: str) -> Planted:
    """Let a norm ignore `model.eval()`."""
    norm = model.get_submodule(where).train()
    norm.train = lambda mode=True: norm  # type: ignore[method-assign]
    return Planted(model)


FAULTS: dict[str, Callable[[nn.Module, str], Planted]] = {
    **{check: of_a_layer(check) for check in OF_A_LAYER},
    "dead_bias": dead_bias,
    "several_depths": twice,
    "stays_in_training": stays,
    "per_device_statistics": lambda model, where: Planted(model, batch=2),
    "decayed": lambda model, where: Planted(model, decay=True),
}


def ours(planted: Planted, x: Tensor) -> Found:
    """Return what the doctor finds."""
    optimizer = optimizer_of(planted)
    found = diagnose(planted.model, x, batch_size=planted.batch, world_size=2, optimizer=optimizer)
    return Counter((finding.check, finding.layer) for finding in found)


def theirs(planted: Planted, x: Tensor) -> Found:
    """Return what torch-audit finds."""
    from torch_audit import audit_dynamic

    model = copy.deepcopy(planted.model)
    optimizer = optimizer_of(Planted(model, decay=planted.decay))
    with audit_dynamic(model, optimizer=optimizer, every_n_steps=1, fail_level="FATAL") as auditor:
        for audit in ("audit_static", "audit_init"):
            getattr(auditor, audit)()
        loss = auditor.forward(x[: planted.batch]).square().mean()
        auditor.backward(loss)
        auditor.optimizer_step()
    result = auditor.finish(report=False)
    return Counter((found.rule_id, found.entity or found.module_path or "") for found in result.findings)


def optimizer_of(planted: Planted) -> torch.optim.Optimizer:
    """Return an optimiser that decays everything, or the weights of layers alone."""
    parameters = list(planted.model.parameters())
    if planted.decay:
        return torch.optim.SGD(parameters, 0.01, weight_decay=0.01)
    wide, narrow = ([p for p in parameters if (p.dim() > 1) is many] for many in (True, False))
    groups = [{"params": wide, "weight_decay": 0.01}, {"params": narrow, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, 0.01)


def new(found: Found, healthy: Found) -> str:
    """Return the checks or rules that report more than of the healthy model."""
    return " ".join(dict.fromkeys(check for check, _ in found - healthy)) or "-"


def look(name: str) -> tuple[str, int, int]:
    """Return the rows of a model, and how many of the faults each tool has found."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).train()
    x = torch.randn(32, 3, SIDE, SIDE) + torch.randn(32, 1, 1, 1)
    fit = [layer for layer, module in syncnorm.batch_norms(model).items() if fits(module)]
    healthy = [tool(Planted(copy.deepcopy(model)), x) for tool in (ours, theirs)]
    rows = []
    for tool, found in zip(("syncnorm", "torch-audit"), healthy, strict=True):
        rules = Counter[str]()
        for (rule, _), count in found.items():
            rules[rule] += count
        told = ", ".join(f"{rule} x{count}" for rule, count in rules.items())
        rows.append(f"{name}, as it is: {tool} says {told or 'nothing'}")
    hits = [0, 0]
    for check, plant in FAULTS.items():
        planted = plant(copy.deepcopy(model), fit[len(fit) // 2])
        both = []
        for place, tool in enumerate((ours, theirs)):
            try:
                both.append(new(tool(planted, x), healthy[place]))
            except Exception as error:  # a tool that fails on a model is a row too
                both.append(f"{type(error).__name__}: {str(error).splitlines()[0][:40]}")
        hits[0] += check in both[0].split()
        hits[1] += both[1] != "-" and ":" not in both[1]
        rows.append(f"{name:18s} {check:24s} {both[0]:58s} {both[1]}")
    return "\n".join(rows), hits[0], hits[1]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"names of timm's models; default: {NAMES}")
    parser.add_argument("--out", type=Path, default=Path("results/doctor_peer.txt"), help="default: %(default)s")
    options = parser.parse_args()
    stand_in()
    try:
        versions = ", ".join(f"{package} {version(package)}" for package in ("timm", "torch-audit", "torch"))
    except ImportError as error:
        sys.exit(f"{error}: pip install --no-deps timm torch-audit.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    here = environment()
    head = f"{versions}, {here['cpu']}, commit {here.get('commit', 'unknown')}"
    blocks = Blocks(options.out, head + f"\n{'model':18s} {'planted':24s} {'syncnorm':58s} torch-audit")
    for name in options.names:
        if name not in blocks.found:
            blocks.add(name, *look(name))
    of_ours, of_theirs = blocks.totals(options.names)
    total = len(options.names) * len(FAULTS)
    blocks.end(options.names, f"of {total} planted faults: syncnorm {of_ours}, torch-audit {of_theirs}")


if __name__ == "__main__":
    main()
