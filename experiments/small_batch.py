"""What repairs batch norm where a device has few samples: statistics of more steps, of running estimates, of none?

Speaks to: Batch Renormalization (arXiv 1702.03275), MABN (arXiv 2001.06838), EvoNorm (arXiv 2004.02967), EvalNorm
           (arXiv 1904.06031), Group Norm (arXiv 1803.08494).
Published: ImageNet, ResNet-50, validation error with 2 images a GPU, of MABN's article: batch norm 35.22 % (with 32
           images 23.41 %), batch renormalisation 30.29 %, MABN 23.67 %. That closes 41.7 % and 97.8 % of batch
           norm's gap. EvalNorm reports 6.18 points over batch norm, likewise with 2 (its abstract).
Run:       syncnorm run experiments/small_batch.py [--quick]

The global batch is 32 in every column; 32 samples per device means one device. What decides is the number of values
that a statistic rests on: samples per device times positions. The network's last layer has one position, so that with
two samples its statistics rest on two values. Images have 12 pixels a side: at 8 the networks stay below a support
vector machine on the pixels. The learning rate is tuned on validation data for every norm at every number of samples,
and group norm's number of groups with it. Rates of norms that go by the device's batch reach further down: with two
values a statistic they train by small ones alone.

Settings from the sources are scaled down to this training of some 900 steps: batch renormalisation is batch norm for
55 steps, and its bounds are full at step 320; MABN averages as many steps as make up 32 samples, from step 65 on, and
renormalises from step 160 on. EvoNorm includes a nonlinearity, and the ReLU after it stays.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.study import Choice, Curve, Gap, Grid, LogUniform, Study, Tune

SIZES = [2, 4, 8, 32]

BY_DEVICE = ["bn", "brn", "mabn", "eval_norm"]
BY_SAMPLE = ["sync_bn", "gn", "evonorm_s0"]
"""Norms that do not depend on the device's batch: the ends of the range are enough for them."""
ENDS = [2, 32]


def norm_at(name: str, per_device_batch: int) -> Norm:
    """Return a norm with its options for this number of samples per device."""
    steps = 32 // per_device_batch
    options: dict[str, dict[str, Any]] = {
        "brn": {"warmup": 55, "r_end": 320, "d_end": 320},
        "mabn": {"buffer": steps, "warmup": 65, "renorm_after": 160, "momentum": 0.02},
    }
    return Norm(name, options.get(name, {}))


def grids(norms: Sequence[str], sizes: Sequence[int]) -> tuple[Grid, ...]:
    """Return these norms at these sizes, one grid per size."""
    return tuple(
        Grid({"norm": [norm_at(name, size) for name in norms], "per_device_batch": [size]}) for size in sizes
    )


FIGURES = (
    Curve(
        x="per_device_batch",
        line="norm",
        where={"norm": BY_DEVICE},
        title="Accuracy of norms that go by the device's batch",
    ),
    Curve(
        x="per_device_batch",
        line="norm",
        where={"norm": ["bn", *BY_SAMPLE]},
        title="Accuracy of batch norm, and of norms that do not go by the device's batch",
    ),
    Gap(
        x="per_device_batch",
        line="norm",
        low={"norm": "bn"},
        high={"norm": "bn", "per_device_batch": 32},
        where={"norm": [*BY_DEVICE, *BY_SAMPLE], "per_device_batch": [2, 4, 8]},
        title="Share of the gap between batch norm at this size and at 32 that a norm closes",
    ),
)

BASE = Run(
    data=Data("digits-photo", size=12, validation=0.15),
    model="strided_cnn",
    model_options={"width": 16, "depth": 4},
    world=Devices(global_batch=32),
    optim=Optim(lr=0.1, epochs=8),
)

TUNE = Tune(
    {"lr": LogUniform(0.003, 1.0)},
    own={
        "gn": {"norm.options.groups": Choice([1, 2, 4, 8])},
        **{norm: {"lr": LogUniform(0.0002, 0.5)} for norm in ("bn", "brn", "eval_norm")},
    },
    per=("norm", "per_device_batch"),
    trials=8,
    halve=True,
    shared=False,
)

STUDY = Study(
    name="small_batch",
    question="What repairs batch norm where a device has few samples?",
    base=BASE,
    vary={"norm": ["bn"], "per_device_batch": SIZES},
    seeds=10,
    tune=TUNE,
    baselines=("svm", "nearest"),
    also=(*grids(BY_DEVICE[1:], SIZES), *grids(BY_SAMPLE, ENDS)),
    figures=FIGURES,
    quick={
        "vary": {"norm": ["bn"], "per_device_batch": [2, 32]},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "baselines": (),
        "also": grids(["brn", "mabn", "gn"], [2, 32]),
    },
)
