"""Does a small per-device batch cost accuracy, and does skew between devices make it worse?

Speaks to: Group Norm, table of batch sizes (arXiv 1803.08494): ImageNet, ResNet-50, validation error of BN 23.6 %
           with 32 images a GPU, 24.8 % with 8, 27.3 % with 4, 34.7 % with 2; of GN about 24 % with any. And to Hsieh
           et al. (arXiv 1910.00189): label skew between workers hurts batch norm most, and group norm recovers much.
Run:       syncnorm run experiments/batch_size.py [--quick]
           syncnorm run experiments/batch_size.py --data.name cifar10 --data.path PATH --data.augment shift_flip \
               --model resnet20 --optim.epochs 20

The global batch is fixed at 32, so the number of devices is 32 / samples per device: one step of SGD averages equally
many gradients in every column, and only the sets of samples that share statistics differ. The learning rate is tuned
for every norm, at every number of samples and every skew; group norm's number of groups with it. Virtual ranks train
everything; torchrun with two real ranks repeats one column in float64 and must agree with virtual ranks.
"""

from dataclasses import replace

from syncnorm.config import Data, Devices, Optim, Run
from syncnorm.study import Agreement, Choice, Curve, Grid, LogUniform, Study, Tune

NORMS = ["bn", "sync_bn", "gn"]
SIZES = [1, 2, 4, 8, 16, 32]
SOME = [1, 16, 32]
"""Sizes for norms that do not go by the device's batch: only the deal of the samples differs between them."""
SKEWS = [0, 100]

TWINS = {
    "norm": NORMS,
    "skew": SKEWS,
    "per_device_batch": [16],
    "precision": ["float64"],
    "engine": ["virtual", "torchrun"],
}
"""Two ranks of 16 samples, real and virtual; in float64, so that rounding differences stay negligible."""

POOLED = {"norm": ["bn"], "per_device_batch": SIZES[:-1], "skew": SKEWS, "buffers": ["pooled"]}
"""The same trainings of batch norm, evaluated with the running statistics of all devices instead of rank 0's."""

VIRTUAL = {"engine": "virtual", "precision": "float32"}

FIGURES = (
    Curve(
        x="per_device_batch",
        line="norm",
        panel="skew",
        where={**VIRTUAL, "buffers": "rank0"},
        title="Accuracy against samples per device, at a global batch of 32",
    ),
    Curve(
        x="per_device_batch",
        line="buffers",
        panel="skew",
        where={**VIRTUAL, "norm": "bn"},
        title="Batch norm evaluated with rank 0's running statistics, and with all devices' pooled",
    ),
    Curve(
        x="skew",
        line="norm",
        panel="engine",
        where={"precision": "float64"},
        title="Two devices of 16 samples: virtual ranks, and real ranks under torchrun",
    ),
)

BASE = Run(
    data=Data("digits-photo", validation=0.15),
    model="small_cnn",
    world=Devices(global_batch=32),
    optim=Optim(lr=0.05, epochs=6),
)

TUNE = Tune(
    {"lr": LogUniform(0.02, 4.0)},
    own={"gn": {"norm.options.groups": Choice([2, 4, 8])}},
    per=("norm", "per_device_batch", "skew"),
    at={"precision": ["float32"], "buffers": ["rank0"]},
    trials=8,
    halve=True,
    shared=False,
)

STUDY = Study(
    name="batch_size",
    question="Does a small per-device batch cost accuracy, and does skew between devices make it worse?",
    base=BASE,
    vary={"norm": ["bn"], "per_device_batch": SIZES, "skew": SKEWS},
    seeds=10,
    tune=TUNE,
    baselines=("svm", "nearest"),
    also=(
        Grid({"norm": ["sync_bn", "gn"], "per_device_batch": SOME, "skew": SKEWS}),
        Grid(POOLED),
        Grid(TWINS, seeds=2),
    ),
    figures=FIGURES,
    agreements=(Agreement(over="engine", tolerance=1e-8),),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=3)),
        "vary": {"norm": ["bn", "sync_bn"], "per_device_batch": [1, 8], "skew": SKEWS},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "baselines": (),
        "also": (),
        "figures": FIGURES[:1],
    },
)
