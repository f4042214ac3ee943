"""Surgery on public architectures: through every norm and back, folded, recalibrated. A table, a row a model.

    python benchmarks/architectures.py [NAME...] [--into results/architectures.txt]   # needs timm and torchvision

With --into, rows are appended to a file as they come, and models that have a row there are passed over: a run that
was ended goes on where it was.

Weights are random, and a few batches set the running statistics. The columns:

    layers        batch norms, found by type
    evaluation    largest change of outputs in evaluation by convert(model, "sync_bn"), relative to the largest output
    norms         of all norms, for how many convert, a step of training and revert end with outputs that are equal
                  bit for bit, once the state is as before; the others are named: refused in a sentence, or different
    folded        batch norms that fold merged; the largest change of outputs, relative
    recalibrated  whether recalibrate gives finite outputs
"""

import argparse
import copy
import sys
import time
import warnings
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import syncnorm
from syncnorm.environment import environment
from syncnorm.errors import UserError

# fmt: off
NAMES = [
    "resnet18", "resnet50", "resnext50_32x4d", "seresnet50", "skresnet18", "res2net50_26w_4s", "resnest14d",
    "resnetv2_50", "wide_resnet50_2", "densenet121", "vgg11_bn", "mobilenetv2_100", "mobilenetv3_small_100",
    "mobilenetv3_large_100", "mobilenetv4_conv_small", "efficientnet_b0", "efficientnet_lite0",
    "efficientnetv2_rw_t", "tf_efficientnet_b0", "mnasnet_100", "semnasnet_075", "fbnetc_100", "ghostnet_100",
    "tinynet_e", "lcnet_050", "hardcorenas_a", "rexnet_100", "regnetx_002", "regnety_002", "dla34", "dpn68",
    "hrnet_w18_small", "inception_v3", "inception_v4", "inception_resnet_v2", "xception41", "selecsls42b",
    "cspresnet50", "darknet53", "ese_vovnet19b_dw", "repvgg_a0", "repvit_m0_9", "mobileone_s0", "levit_128s",
    "efficientformer_l1", "fastvit_t8",
    "mobilenetv1_100", "mixnet_s", "spnasnet_100",
]
# fmt: on
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}
"""Options that a norm cannot do without."""
SIDE = 96
HEAD = "model                    layers evaluation  norms      folded   recalibrated  not through every norm"


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """Return what the model gives in evaluation."""
    with torch.no_grad(), syncnorm.domain(0):
        y = model.eval()(x)
    return y if isinstance(y, Tensor) else torch.cat([part.flatten() for part in y])


def step(model: nn.Module, x: Tensor) -> None:
    """Train one step, without an optimiser."""
    with syncnorm.domain(0):
        y = model.train()(x)
    (y if isinstance(y, Tensor) else y[0]).square().mean().backward()


def sides(model: nn.Module) -> tuple[int, int]:
    """Return height and width of the images: those that a model is made for, if it takes no others."""
    made_for: Any = model.pretrained_cfg
    return tuple(made_for["input_size"][1:]) if made_for.get("fixed_input_size") else (SIDE, SIDE)


def apart(y: Tensor, before: Tensor) -> float:
    """Return the largest difference, relative to the largest output."""
    return float((y - before).abs().max() / before.abs().max())


def through(model: nn.Module, norm: str, x: Tensor, before: Tensor) -> str:
    """Convert a copy, train a step, revert: return "" if the outputs are equal, else what happened."""
    model = copy.deepcopy(model)
    state = copy.deepcopy(model.state_dict())
    try:
        model = syncnorm.convert(model, norm, **OPTIONS.get(norm, {}))
        step(model, x)
        model = syncnorm.revert(model)
        model.load_state_dict(state)
        return "" if torch.equal(outputs(model, x), before) else "different"
    except (UserError, ValueError) as error:  # a layer's own sentence is a ValueError
        return f"refused: {error}"


def row(name: str) -> str:
    """Measure a model, and return its row."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).train()
    x = torch.randn(4, 3, *sides(model))
    for _ in range(3):
        with torch.no_grad():
            model(x + torch.randn(()))
    before = outputs(model, x)
    layers = len(syncnorm.batch_norms(model))
    changed = apart(outputs(syncnorm.convert(copy.deepcopy(model), "sync_bn"), x), before)
    said = {norm: through(model, norm, x, before) for norm in syncnorm.norm_names()}
    left = [f"{norm} {what.split(':')[0]}" for norm, what in said.items() if what]
    folded = syncnorm.fold(copy.deepcopy(model).eval())
    merged = layers - len(syncnorm.batch_norms(folded))
    moved = apart(outputs(folded, x), before)
    fine = outputs(syncnorm.recalibrate(copy.deepcopy(model), [x]), x).isfinite().all()
    norms = f"{len(said) - len(left)}/{len(said)}"
    return (
        f"{name:24s} {layers:6d} {changed:10.1e} {norms:>6s} {merged:5d} {moved:8.1e} {'yes' if fine else 'NO':>12s}"
        f"  {', '.join(left)}"
    )


def rows_of(names: list[str]) -> Iterator[str]:
    """Measure the models, and give the lines of the table as they come."""
    import timm

    here = environment()
    yield f"timm {timm.__version__}, torch {here['torch']}, {here['cpu']}, commit {here.get('commit', 'unknown')}"
    for name in names:
        started = time.perf_counter()
        try:
            yield row(name)
        except Exception as error:  # a row, so that the others are measured
            yield f"{name:24s} {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> None:
    """Print the table, into a file too if asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", default=NAMES, help=f"names of timm's models; default: {len(NAMES)} of them"
    )
    parser.add_argument(
        "--into", type=Path, help="append rows to this file, and pass over models that have one there"
    )
    given = parser.parse_args()
    try:
        import timm  # noqa: F401
    except ImportError as error:
        sys.exit(f"timm cannot be imported ({error}): pip install timm, and torchvision.")
    warnings.simplefilter("ignore")
    old = given.into.read_text().splitlines() if given.into and given.into.exists() else []
    there = {line.split()[0] for line in old if line.strip()}
    names = [name for name in given.names if name not in there]
    if not names:
        sys.exit(f"every model has a row in {given.into}: delete the rows that you want measured again.")
    for line in chain([] if old else [HEAD], rows_of(names)):
        print(line, flush=True)
        if given.into:
            with given.into.open("a") as file:
                file.write(f"{line.rstrip()}\n")


if __name__ == "__main__":
    main()
