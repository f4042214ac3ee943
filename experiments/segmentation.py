"""How many images does a device need for dense prediction, and does it matter that they are alike?

Speaks to: In-place activated and synchronised batch norm for segmentation and detection, where a GPU holds one or two
           images: PSPNet (arXiv 1612.01105) and MegDet (arXiv 1711.07240) synchronise; MegDet reports that a detector
           with batch norm at 2 images a GPU does not converge; Group Norm (arXiv 1803.08494); Moving Average Batch
           Normalization (arXiv 2001.06838), with gains on COCO at 2 images a GPU.
Run:       syncnorm run experiments/segmentation.py [--quick]

A U-Net labels every pixel of 16x16 images: a digit and two of disc, square and triangle, blended into photographs.
The learning rate is tuned on validation images for every norm, number of images and deal; group norm's number of
groups with it. The global batch is fixed at 8, so the number of devices is 8 / images per device. "Group-sorted data
0 %" deals all scenes to all devices; at 100 % a device's images share a scene or have similar ones: the photograph
and its region, brightness and contrast. Test images show every scene, cut from other parts of the photographs.

A layer of the U-Net gets images x positions values per channel: 4 at its lowest level to 256 at its highest with one
image, 32 to 2,048 with eight. But the values of one image are alike, and so are images of one scene: they are worth
fewer independent ones, and `effective_samples` says how many, measured from the variance of batch means.
"""

from dataclasses import replace
from typing import Any

from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.study import Agreement, Choice, Curve, Grid, LogUniform, Profile, Study, Tune

IMAGES = [1, 2, 4, 8]
SKEWS = [0, 100]
BY_SAMPLE = ["sync_bn", "gn", "frozen_bn"]
NORMS = ["bn", *BY_SAMPLE, "mabn"]
ENDS = [1, 8]
"""Images for `BY_SAMPLE`, norms that do not go by the device's batch."""


def norm_at(name: str, images: int) -> Norm:
    """Return a norm with its options for this number of images per device: MABN averages steps of 8 images."""
    options: dict[str, dict[str, Any]] = {
        "mabn": {"buffer": 8 // images, "warmup": 50, "renorm_after": 120, "momentum": 0.02},
    }
    return Norm(name, options.get(name, {}))


VIRTUAL = {"engine": "virtual", "precision": "float32"}
TWINS = {
    "norm": NORMS,
    "per_device_batch": [4],
    "natural_skew": [100],
    "precision": ["float64"],
    "engine": ["virtual", "torchrun"],
}
"""Two devices of 4 images, real and virtual; in float64, so that rounding differences stay negligible."""

FIGURES = (
    Curve(
        x="per_device_batch",
        line="norm",
        panel="natural_skew",
        metric="mean_iou",
        where=VIRTUAL,
        title="Mean IoU against images per device, at a global batch of 8",
    ),
    Profile(
        line="per_device_batch",
        metric="effective_samples",
        panel="natural_skew",
        where={**VIRTUAL, "norm": "bn"},
        title="Independent values that a device's batch is worth, by layer of the U-Net, with batch norm",
    ),
    Profile(
        line="per_device_batch",
        metric="values_per_channel",
        panel="natural_skew",
        where={**VIRTUAL, "norm": "bn"},
        title="Values per channel that a layer gets, by layer of the U-Net, with batch norm",
    ),
)

BASE = Run(
    data=Data("shapes-photo", size=16, validation=0.15),
    model="unet",
    world=Devices(global_batch=8),
    optim=Optim(lr=0.1, epochs=10),
    task="segmentation",
)

TUNE = Tune(
    {"lr": LogUniform(0.02, 1.0)},
    own={"gn": {"norm.options.groups": Choice([1, 2, 4])}},
    per=("norm", "per_device_batch", "natural_skew"),
    at={"precision": ["float32"]},
    trials=5,
    halve=True,
    by="validation_mean_iou",
    shared=False,
)

STUDY = Study(
    name="segmentation",
    question="How many images does a device need for dense prediction, and does it matter that they are alike?",
    base=BASE,
    vary={"norm": ["bn"], "per_device_batch": IMAGES, "natural_skew": SKEWS},
    seeds=10,
    tune=TUNE,
    also=(
        Grid({"norm": BY_SAMPLE, "per_device_batch": ENDS, "natural_skew": SKEWS}),
        Grid({"norm": BY_SAMPLE, "per_device_batch": [4], "natural_skew": [100]}),
        *(
            Grid({"norm": [norm_at("mabn", images)], "per_device_batch": [images], "natural_skew": SKEWS})
            for images in IMAGES
        ),
        Grid(TWINS, seeds=1),
    ),
    figures=FIGURES,
    agreements=(Agreement(over="engine", tolerance=1e-8),),
    quick={
        "base": replace(BASE, optim=replace(BASE.optim, epochs=2)),
        "vary": {"norm": ["bn", "sync_bn"], "per_device_batch": [1, 8], "natural_skew": SKEWS},
        "seeds": 2,
        "tune": replace(TUNE, trials=2, seeds=1),
        "also": (),
    },
)
