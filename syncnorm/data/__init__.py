"""Data sets, and who holds what of them."""

from syncnorm.data.augment import augment
from syncnorm.data.dataset import Dataset
from syncnorm.data.domains import DOMAINS
from syncnorm.data.load import load
from syncnorm.data.partition import METHODS, label_histogram, partition
from syncnorm.data.partition_figure import partition_figure
from syncnorm.data.population import Population, make_population
from syncnorm.data.rank_batches import rank_batches

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
    "partition_figure",
    "rank_batches",
]
