"""What names the content of data, so that results of other data are never taken for theirs."""

from typing import Protocol


class Fingerprinted(Protocol):
    """A data set, a pool of domains, or a federated data set."""

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the content."""


def fingerprint(data: Fingerprinted) -> str:
    """Return 16 hex digits of the content of a `Dataset`, a `Pool` of domains or a `FederatedDataset`.

    SHA-256 of samples as they are trained on (normalised, as float32), labels, the split, and the columns that say
    where samples come from. Names, paths, device and data type do not count. It is computed once for each object. A
    federated data set has that of its pool: noise and partition follow from the run.
    """
    return data.fingerprint
