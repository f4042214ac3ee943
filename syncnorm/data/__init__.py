"""Data sets and their partitions."""

from syncnorm.data.augment import augment
from syncnorm.data.dataset import Dataset
from syncnorm.data.embedded.digits import DOMAINS
from syncnorm.data.fingerprint import fingerprint
from syncnorm.data.partitions.build import make_federated_dataset
from syncnorm.data.partitions.card import partition_card
from syncnorm.data.partitions.federated_dataset import FederatedDataset
from syncnorm.data.partitions.methods import METHODS, label_histogram, partition, register_partition
from syncnorm.data.rank_batches import rank_batches
from syncnorm.data.sources.load import load, load_config
from syncnorm.data.sources.registered import ON_REGISTRATION, SOURCES, register_data

__all__ = [
    "DOMAINS",
    "METHODS",
    "ON_REGISTRATION",
    "SOURCES",
    "Dataset",
    "FederatedDataset",
    "augment",
    "fingerprint",
    "label_histogram",
    "load",
    "load_config",
    "make_federated_dataset",
    "partition",
    "partition_card",
    "rank_batches",
    "register_data",
    "register_partition",
]
