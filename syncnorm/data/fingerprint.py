"""Fingerprints of data, so that results are never attributed to other data."""

from typing import Protocol


class Fingerprinted(Protocol):
    """A data set, a pool of domains, or a federated data set."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the content."""


def fingerprint(data: Fingerprinted) -> str:
    """Return 16 hex digits of the content of a `Dataset`, a `Pool` of domains or a `FederatedDataset`.

    It is a SHA-256 hash of the samples as used in training (normalised, as float32), labels, the split, and the
    columns with samples' origins. Names, paths, device and data type do not matter. It is computed once per object. A
    federated data set has its pool's fingerprint: noise and partition follow from the run.
    """
    return data.fingerprint
