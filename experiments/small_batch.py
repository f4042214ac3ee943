"""What repairs batch norm where a device has few samples: statistics of more steps, of running estimates, of none?

Speaks to: Batch Renormalization (arXiv 1702.03275), MABN (arXiv 2001.06838), Cross-Iteration BN (arXiv 2002.05712),
           EvoNorm (arXiv 2004.02967), FRN (arXiv 1911.09737), Diminishing BN (arXiv 1705.08011), Full Normalization
           (arXiv 1810.06177), EvalNorm (arXiv 1904.06031), Group Norm (arXiv 1803.08494).
Published: ImageNet, ResNet-50, validation error with 2 images a GPU, of MABN's article: batch norm 35.22 % (with 32
           images 23.41 %), batch renormalisation 30.29 %, MABN 23.67 %. That closes 41.7 % and 97.8 % of batch
           norm's gap. EvalNorm reports 6.18 points over batch norm, likewise with 2 (its abstract).
Run:       syncnorm run experiments/small_batch.py [--quick]

The global batch is 32 in every column; 32 samples per device means one device. The network is narrow, and its layers
have 36, 9 and 4 positions per sample, so that with one or two samples a statistic rests on few values: a wide network
on larger images loses nothing with batch norm at 2 samples (experiments/batch_size.py). Image size and width were
chosen, on one to three seeds, so that batch norm with 2 is below batch norm with 32; single runs of other norms had
been seen before the epochs, the rates and the steps below were fixed. Every line is trained at two learning rates,
and both are shown.

Settings from the sources are scaled down to this training of some 500 steps: batch renormalisation is batch norm for
40 steps, and its bounds are full at step 240; MABN averages as many steps as make up 32 samples, from step 50 on, and
renormalises from step 120 on; cross-iteration batch norm uses as many past steps as make up 32 samples, at most 8,
with the gradient through the current weight. It needs a copy of the model for every device and is by far the slowest
line, so it has fewer columns and seeds. EvoNorm includes a nonlinearity, and the ReLU after it stays.
"""

from collections.abc import Sequence
from typing import Any

from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.study import Curve, Gap, Grid, Plot, Study

SIZES = [1, 2, 4, 8, 32]
SKEWS = [0, 100]
RATES = [0.02, 0.1]

BY_DEVICE = ["bn", "brn", "mabn", "diminishing_bn", "full_norm", "eval_norm", "evonorm_b0"]
BY_SAMPLE = ["sync_bn", "gn", "frn", "evonorm_s0", "none"]
"""Norms that do not depend on the device's batch."""


def norm_at(name: str, per_device_batch: int) -> Norm:
    """Return a norm with its options for this number of samples per device."""
    steps = 32 // per_device_batch
    options: dict[str, dict[str, Any]] = {
        "brn": {"warmup": 40, "r_end": 240, "d_end": 240},
        "mabn": {"buffer": steps, "warmup": 50, "renorm_after": 120, "momentum": 0.02},
        "cbn": {"window": min(steps, 8), "through_weight": True},
    }
    return Norm(name, options.get(name, {}))


def grids(
    norms: Sequence[str], sizes: Sequence[int], rates: Sequence[float] = RATES, seeds: int | None = None
) -> tuple[Grid, ...]:
    """Return these norms at these sizes, one grid per size."""
    return tuple(
        Grid(
            {
                "norm": [norm_at(name, size) for name in norms],
                "per_device_batch": [size],
                "skew": SKEWS,
                "lr": list(rates),
            },
            seeds,
        )
        for size in sizes
    )


def figures(rate: float) -> tuple[Plot, ...]:
    """Return the plots for one learning rate."""
    at = f"at learning rate {rate}"
    return (
        Curve(
            x="per_device_batch",
            line="norm",
            panel="skew",
            where={"norm": [*BY_DEVICE, "cbn"], "lr": rate},
            title=f"Accuracy of norms that go by the device's batch, {at}",
        ),
        Curve(
            x="per_device_batch",
            line="norm",
            panel="skew",
            where={"norm": ["bn", *BY_SAMPLE], "lr": rate},
            title=f"Accuracy of batch norm, and of norms that do not go by the device's batch, {at}",
        ),
        Gap(
            x="per_device_batch",
            line="norm",
            low={"norm": "bn"},
            high={"norm": "bn", "per_device_batch": 32},
            panel="skew",
            where={"norm": [*BY_DEVICE, "cbn", *BY_SAMPLE], "per_device_batch": [1, 2, 4, 8], "lr": rate},
            title=f"Share of the gap between batch norm at this size and at 32 that a norm closes, {at}",
        ),
    )


BASE = Run(
    data=Data("digits-photo", size=12),
    model="strided_cnn",
    model_options={"width": 4, "depth": 3},
    world=Devices(global_batch=32),
    optim=Optim(lr=0.1, epochs=4),
)

STUDY = Study(
    name="small_batch",
    question="What repairs batch norm where a device has few samples?",
    base=BASE,
    vary={"norm": ["bn"], "per_device_batch": SIZES, "skew": SKEWS, "lr": RATES},
    seeds=5,
    also=(
        *grids(BY_DEVICE[1:], SIZES),
        *grids(BY_SAMPLE, SIZES),
        *grids(["cbn"], [2, 8, 32], seeds=3),
    ),
    figures=(*figures(0.1), *figures(0.02)),
    quick={
        "vary": {"norm": ["bn"], "per_device_batch": [1, 2, 32], "skew": SKEWS, "lr": [0.1]},
        "seeds": 3,
        "also": grids(["brn", "mabn", "gn"], [1, 2, 32], rates=[0.1]),
        "figures": figures(0.1),
    },
)
