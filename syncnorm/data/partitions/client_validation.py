"""Each client's own validation samples, drawn from its training samples."""

import numpy as np

from syncnorm.data.partitions.client_partition import Indices
from syncnorm.data.split import held_out, validation_keys


def divide(
    samples: Indices, labels: Indices, numbers: Indices, fraction: float, seed: int
) -> tuple[Indices, Indices]:
    """Return a client's training and validation samples, both in the order of `samples`.

    `labels` and `numbers` are the class of each sample and the number of what it shows. Of that many different
    numbers, `fraction` is for validation, rounded down, so that a client of fewer than 1 / fraction has none. They
    are stratified by class, as far as there are enough, and those with the smallest keys: a number's key is the same
    at all clients, so that what one client holds out is mostly held out by others that have it too.
    """
    known, first, of_sample = np.unique(numbers, return_index=True, return_inverse=True)
    chosen = held_out(labels[first], fraction, validation_keys(known, seed))
    validated = np.isin(of_sample.reshape(-1), chosen)
    return samples[~validated], samples[validated]
