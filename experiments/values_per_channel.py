"""How few values may a batch norm's statistics rest on?

Speaks to: Group Norm, table of batch sizes (arXiv 1803.08494): ImageNet, ResNet-50, validation error of batch norm
           23.6 % with 32 images a GPU, 24.8 % with 8, 27.3 % with 4, 34.7 % with 2.
Run:       syncnorm run experiments/values_per_channel.py [--quick]

A layer normalises a channel by samples per device x positions values, so two images in a layer of 4x4 positions are
32 values, and two in a layer of one position are 2. Three networks get the same images: one without positions, whose
every layer gets as many values as samples, and two with strides, whose last layer has 1x1 positions (on 8x8 images)
or 2x2 (on 16x16). The figures show the same runs against samples per device, and against the fewest values that one
of a network's layers gets. The global batch is fixed at 32, and the learning rate is tuned for every network at every
number of samples.
"""

from dataclasses import replace

from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Curve, Grid, LogUniform, Study, Tune

SAMPLES = [1, 2, 4, 8, 32]
DEEP = {"depth": 4, "width": 8}
WIDE = {"depth": 3, "width": 8}
LINE = ("model", "model_options")
NETWORKS = (
    {"model": ["mlp"], "model_options": [{}], "size": [8]},
    {"model": ["strided_cnn"], "model_options": [DEEP], "size": [8]},
    {"model": ["strided_cnn"], "model_options": [WIDE], "size": [16]},
)
POSITIONS = (1, 1, 4)
"""Positions of each network's last norm: where there is one, a single sample has no variance."""


def grids(samples: list[int]) -> tuple[Grid, ...]:
    """Return every network at these numbers of samples per device."""
    return tuple(
        Grid({**network, "per_device_batch": [count for count in samples if count * last > 1]})
        for network, last in zip(NETWORKS, POSITIONS, strict=True)
    )


FIGURES = (
    Curve(
        x="values_per_channel",
        measured=True,
        rivals=False,
        line=LINE,
        title="Accuracy of batch norm against the fewest values per channel and device",
    ),
    Curve(
        x="per_device_batch",
        line=LINE,
        rivals=False,
        title="Accuracy of batch norm against samples per device",
    ),
)

BASE = Run(
    data=Data("digits-photo", size=8, validation=0.15),
    model="mlp",
    world=Devices(global_batch=32),
    optim=Optim(lr=0.1, epochs=6),
)

TUNE = Tune({"lr": LogUniform(0.0003, 0.5)}, per=(*LINE, "per_device_batch"), trials=8, halve=True, shared=False)

FIRST, *OTHERS = grids(SAMPLES)
STUDY = Study(
    name="values_per_channel",
    question="How few values may a batch norm's statistics rest on?",
    base=BASE,
    vary=FIRST.vary,
    seeds=10,
    tune=TUNE,
    also=tuple(OTHERS),
    figures=FIGURES,
    quick={
        "vary": grids([2, 32])[0].vary,
        "also": grids([2, 32])[1:],
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
    },
)
