"""Claims about how many samples share statistics, and whose: decided by the rows of studies in results/."""

from typing import Any

from experiments.claims.claim import Claim, Region
from experiments.claims.layers import START
from experiments.claims.measures import Side, difference, share_closed

GROUP_NORM = "Group Normalization, arXiv 1803.08494, ImageNet, ResNet-50"
MOVING = "MABN, arXiv 2001.06838, ImageNet, ResNet-50"
RERUN = "a re-run of FedBN's official code by others (github.com/surafel58/FedBN), one seed"
DIGITS, FEW, CIFAR = "batch_size", "small_batch", "batch_size_cifar10"
POSITIONS = "small CNN on 16x16 digits, whose smallest layer has 16 positions"
ONE = "strided CNN on 12x12 digits, whose last layer has one position, so that two images are two values"
TUNED = "global batch 32, rates tuned for each norm and number of images"

STUDIES = (DIGITS, FEW, CIFAR, "participation")
"""The studies in results/ whose rows are read."""


def at(norm: str, samples: int, **more: Any) -> Side:
    """Return the fields of a norm with so many samples a device."""
    return {"norm": norm, "per_device_batch": samples, **more}


def on_digits(norm: str, samples: int, skew: float = 0.0) -> Side:
    """Return the same in the study of 16x16 digits: virtual ranks in float32, evaluated with rank 0's statistics."""
    return at(norm, samples, skew=skew, engine="virtual", precision="float32", buffers="rank0")


def clients(method: str, share: float) -> Side:
    """Return the fields of a federated method where this share of the clients takes part in a round."""
    return {"method": method, "participation": share, "norm": "bn", "global_norm": "none"}


def cost(name: str, study: str, where: str, a: Side, b: Side) -> Claim:
    """Return the claim that two images a device cost 5 to 10 points, in one study."""
    return Claim(
        name,
        f"With 2 images a device in place of 32, batch norm loses 5 to 10 points: {where.partition(',')[0]}.",
        f"{START}; published: {GROUP_NORM}",
        "5 to 10 points, or 11.1",
        f"Test accuracy with 32 minus that with 2: {where}; {TUNED} (results/{study}).",
        "points",
        Region(5, 10),
        difference(study, a, b),
        mark=11.1,
    )


CLAIMS = (
    cost("two-images", DIGITS, POSITIONS, on_digits("bn", 32), on_digits("bn", 2)),
    cost("two-images-one-position", FEW, ONE, at("bn", 32), at("bn", 2)),
    cost("two-images-cifar10", CIFAR, "strided CNN on CIFAR-10 at 16x16", at("bn", 32), at("bn", 2)),
    Claim(
        "gn-closes",
        "With 2 images a device, group norm closes batch norm's gap.",
        f"{GROUP_NORM}: group norm with 2 images 24.1 % error, batch norm with 32 23.6 %",
        "to 0.5 points",
        f"Test accuracy of group norm with 2 images minus that of batch norm with 32: {ONE}; {TUNED} "
        f"(results/{FEW}). A point less is what counts as closed.",
        "points",
        Region(low=-1),
        difference(FEW, at("gn", 2), at("bn", 32)),
        mark=-0.5,
    ),
    Claim(
        "below-eight",
        "Below 8 samples a device, the statistics are too noisy.",
        f"{START}; published: {GROUP_NORM}: 27.3 % error with 4 images, 23.6 % with 32",
        "3.7 points",
        f"Test accuracy with 32 minus that with 4: {POSITIONS}; {TUNED} (results/{DIGITS}). "
        "It holds from a point on.",
        "points",
        Region(low=1),
        difference(DIGITS, on_digits("bn", 32), on_digits("bn", 4)),
        mark=3.7,
    ),
    Claim(
        "below-eight-one-position",
        "Below 8 values a statistic, the statistics are too noisy.",
        f"{START}; published: {GROUP_NORM}: 27.3 % error with 4 images, 23.6 % with 32",
        "3.7 points",
        f"The same with a {ONE} (results/{FEW}): 4 images are 4 values.",
        "points",
        Region(low=1),
        difference(FEW, at("bn", 32), at("bn", 4)),
        mark=3.7,
    ),
    Claim(
        "sixteen",
        "With 16 samples a device and more, the loss is moderate.",
        f"{START}; published: {GROUP_NORM}: 23.7 % error with 16 images, 23.6 % with 32",
        "0.1 points",
        f"Test accuracy with 32 minus that with 16: {POSITIONS}; {TUNED} (results/{DIGITS}). Moderate is up to a "
        "point.",
        "points",
        Region(high=1),
        difference(DIGITS, on_digits("bn", 32), on_digits("bn", 16)),
        mark=0.1,
    ),
    Claim(
        "mabn",
        "Moving average batch norm closes 97.8 % of the gap at 2 images.",
        f"{MOVING}: errors of 35.22, 23.67 and 23.41 %",
        "97.8 %",
        f"The share of batch norm's gap between 2 and 32 images that it closes: {ONE}; {TUNED} "
        f"(results/{FEW}). It holds within 10 points of the published share.",
        "%",
        Region(87.8, 107.8),
        share_closed(FEW, at("mabn", 2), at("bn", 2), at("bn", 32)),
        mark=97.8,
    ),
    Claim(
        "brn",
        "Batch renormalisation closes 41.7 % of the gap at 2 images.",
        f"{MOVING}: errors of 35.22, 30.29 and 23.41 %",
        "41.7 %",
        "The same of batch renormalisation.",
        "%",
        Region(31.7, 51.7),
        share_closed(FEW, at("brn", 2), at("bn", 2), at("bn", 32)),
        mark=41.7,
    ),
    Claim(
        "unsynchronised",
        "Training without synchronisation costs accuracy where each device holds other classes.",
        f"{START}; arXiv 1910.00189 says so of label skew between workers",
        "",
        "Test accuracy of synchronised batch norm minus that of each device's own, with two devices of 16 images and "
        f"sorted labels: {POSITIONS}; {TUNED} (results/{DIGITS}). It holds from a point on.",
        "points",
        Region(low=1),
        difference(DIGITS, on_digits("sync_bn", 16, 100.0), on_digits("bn", 16, 100.0)),
    ),
    Claim(
        "unsynchronised-mixed",
        "Training without synchronisation costs accuracy where each device has one image.",
        START,
        "",
        f"The same with 32 devices of one image, without skew: {POSITIONS}; {TUNED} (results/{DIGITS}).",
        "points",
        Region(low=1),
        difference(DIGITS, on_digits("sync_bn", 1), on_digits("bn", 1)),
    ),
    Claim(
        "fedbn",
        "With all clients in every round, local batch norms (FedBN) are better than averaged ones.",
        f"{RERUN}: 84.03 and 80.80 % on five sets of digits",
        "3.2 points",
        "Mean accuracy over 20 clients in five domains of digits, FedBN minus FedAvg, rates tuned "
        "(results/participation).",
        "points",
        Region(low=0),
        difference("participation", clients("fedbn", 1.0), clients("fedavg", 1.0)),
        mark=3.23,
    ),
    Claim(
        "fedbn-worst",
        "With 10 % of the clients in a round, FedBN's worst client is worse than FedAvg's.",
        f"{RERUN}: 12.43 and 71.76 %",
        "59.3 points worse",
        "Accuracy of the worst client, FedBN minus FedAvg, the same study.",
        "points",
        Region(high=0),
        difference("participation", clients("fedbn", 0.1), clients("fedavg", 0.1), "client_accuracy_worst"),
        mark=-59.33,
    ),
)
