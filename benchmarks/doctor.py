"""The doctor on public architectures: what it finds in healthy models, and in the same models with planted faults.

    python benchmarks/doctor.py [NAME...] [--out results/doctor.txt]        # needs timm: pip install --no-deps timm

A run that was broken off goes on where it was, if commit, versions and machine are the same. Weights are random. The
columns:

    norms      norms that the model has, by kind
    healthy    what `diagnose` finds in the model as it is, at 32 samples on each of 8 devices: "-" is nothing
    planted    of ten faults, each in a layer of its own and all together, how many are found at their layer
    seconds    of processor time that the diagnosis of the healthy model takes, on one thread

The last line counts the models, those in which anything worse than a note was found, and the faults.
"""

import argparse
import copy
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers.blocks import Blocks
from peers.no_torchvision import stand_in
from torch import nn

import syncnorm
from syncnorm.doctor import Diagnosis, diagnose
from syncnorm.environment import environment

# fmt: off
NAMES = [
    "resnet18", "resnet50", "densenet121", "mobilenetv2_100", "efficientnet_b0", "vit_tiny_patch16_224",
    "mobilenetv3_small_100", "mobilenetv4_conv_small", "tf_efficientnet_b0", "ghostnet_100", "lcnet_050", "tinynet_e",
    "rexnet_100", "regnetx_002", "regnety_002", "repvgg_a0", "fastvit_t8", "convnext_atto", "poolformer_s12",
    "mobilevit_xxs", "pvt_v2_b0", "edgenext_xx_small", "dla34", "resnet50_gn", "resnext50_32x4d", "skresnet18",
    "resnest14d", "vgg11_bn", "mobilenetv1_100", "mixnet_s", "spnasnet_100", "hardcorenas_a", "semnasnet_075",
    "efficientnet_lite0", "selecsls42b", "ese_vovnet19b_dw", "repvit_m0_9", "mobileone_s0", "levit_128s",
    "convnextv2_atto", "deit_tiny_patch16_224", "nf_regnet_b0", "cs3darknet_s", "mobilenet_edgetpu_v2_xs",
]
# fmt: on
SIDE = 64
Plant = Callable[[nn.Module, str], None]


def keyed(key: str, value: Any) -> Plant:
    """Return a function that sets an attribute of a layer."""
    return lambda model, where: setattr(model.get_submodule(where), key, value)


def statistic(key: str, value: float) -> Plant:
    """Return a function that sets the first channel of a layer's parameter or statistics."""

    def plant(model: nn.Module, where: str) -> None:
        getattr(model.get_submodule(where), key).data[:1] = value

    return plant


def untracked(model: nn.Module, where: str) -> None:
    """Take a layer's running statistics away."""
    found: Any = model.get_submodule(where)
    found.running_mean = found.running_var = found.num_batches_tracked = None
    found.track_running_stats = False


def dead(model: nn.Module, where: str) -> None:
    """Let most channels of a layer die."""
    weight: Any = model.get_submodule(where).weight
    weight.data.fill_(1.0)[: len(weight) * 3 // 4] = 1e-7


def twice(model: nn.Module, where: str) -> None:
    """Put another norm right before a norm."""
    second: Any = model.get_submodule(where)
    model.set_submodule(where, nn.Sequential(nn.BatchNorm2d(second.num_features), second))


def left(model: nn.Module, where: str) -> None:
    """Leave one layer in training mode."""
    model.get_submodule(where).train()


FAULTS: dict[str, Plant] = {
    "left_in_training": left,
    "depends_on_batch": untracked,
    "not_finite": statistic("running_var", float("nan")),
    "negative_variance": statistic("running_var", -0.1),
    "zero_variance": statistic("running_var", 0.0),
    "odd_momentum": keyed("momentum", 0.99),
    "odd_eps": keyed("eps", 0.1),
    "contradicting_flag": keyed("track_running_stats", False),
    "dead_channels": dead,
    "two_in_a_row": twice,
}
"""Faults of a batch norm, by the check that has to find each."""


def said(found: Diagnosis) -> str:
    """Return the checks that found something, the bad ones and then the notes."""
    worse = Counter(finding.check for finding in found if finding.severity != "note")
    notes = Counter(finding.check for finding in found if finding.severity == "note")
    words = [f"{check} x{count}" for check, count in worse.items()]
    words += [f"note {check} x{count}" for check, count in notes.items()]
    return ", ".join(words) or "-"


def planted(model: nn.Module, shape: tuple[int, ...], places: dict[str, str]) -> list[str]:
    """Plant faults, each into its layer; return those that are not found there."""
    twin = copy.deepcopy(model).eval()
    for check, where in places.items():
        FAULTS[check](twin, where)
    found = diagnose(twin, shape, batch_size=32, world_size=8)
    return [
        check
        for check, where in places.items()
        if not any(finding.layer in (where, f"{where}.1") for finding in found.of(check))
    ]


def spread(model: nn.Module) -> dict[str, str]:
    """Return a layer for each fault, over the whole model; none if there are fewer layers."""
    fit = [name for name, module in syncnorm.batch_norms(model).items() if fits(module)]
    if len(fit) < len(FAULTS):
        return {}
    return {check: fit[place * len(fit) // len(FAULTS)] for place, check in enumerate(FAULTS)}


def fits(module: nn.Module) -> bool:
    """Return whether a fault of a layer can show: its weight is not 0, as in the last norm of many branches."""
    return isinstance(module, nn.BatchNorm2d) and module.weight is not None and bool((module.weight != 0).all())


def row(name: str) -> tuple[str, bool, int, int]:
    """Look at a model; return its row, whether anything worse than a note was found as it is, faults and hits."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).train()
    made_for: Any = model.pretrained_cfg
    shape = tuple(made_for["input_size"]) if made_for.get("fixed_input_size") else (3, SIDE, SIDE)
    started = time.process_time()
    found = diagnose(model, shape, batch_size=32, world_size=8)
    seconds = time.process_time() - started
    places = spread(model)
    missed = planted(model, shape, places) if places else []
    told = f"{len(places) - len(missed)}/{len(places)} {' '.join(missed)}".strip() if places else "no room"
    kinds = Counter(type(module).__name__ for module in model.modules() if "Norm" in type(module).__name__)
    norms = " ".join(f"{count} {kind}" for kind, count in kinds.most_common(2))
    text = f"{name:26s} {norms:42s} {said(found):22s} {told:10s} {seconds:6.1f}"
    return text, found.wrong, len(places), len(places) - len(missed)


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, help=f"names of timm's models; default: {len(NAMES)}")
    parser.add_argument("--out", type=Path, default=Path("results/doctor.txt"), help="default: results/doctor.txt")
    options = parser.parse_args()
    stand_in()
    try:
        import timm
    except ImportError as error:
        sys.exit(f"timm cannot be imported ({error}): pip install --no-deps timm.")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    here = environment()
    head = f"timm {timm.__version__}, torch {here['torch']}, {here['cpu']}, commit {here.get('commit', 'unknown')}"
    head += f"\n{'model':26s} {'norms':42s} {'healthy':22s} {'planted':10s} seconds"
    blocks, failed = Blocks(options.out, head), []
    for name in options.names:
        if name in blocks.found:
            continue
        try:
            text, *counts = row(name)
            blocks.add(name, text, *counts)
        except Exception as error:  # the others are looked at, and this one is tried again by the next run
            failed.append(f"{name}: {type(error).__name__}: {str(error).splitlines()[0][:120]}")
    if failed:
        sys.exit("\n".join(failed))
    wrong, faults, hits = blocks.totals(options.names)
    blocks.end(
        options.names,
        f"{len(options.names)} models; in {wrong} of them as they are, something worse than a note was found; "
        f"of {faults} planted faults {hits} were found",
    )


if __name__ == "__main__":
    main()
