"""Data sets, and who holds what of them."""

from syncnorm.data.augment import augment
from syncnorm.data.dataset import Dataset
from syncnorm.data.partitions.deal import METHODS, label_histogram, partition
from syncnorm.data.partitions.population import Population, make_population
from syncnorm.data.rank_batches import rank_batches
from syncnorm.data.sources.digits import DOMAINS
from syncnorm.data.sources.load import load

__all__ = [
    "DOMAINS",
    "METHODS",
    "Dataset",
    "Population",
    "augment",
    "label_histogram",
    "load",
    "make_population",
    "partition",
    "rank_batches",
]
