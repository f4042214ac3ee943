"""The seconds that this process has waited for other ranks. Who waits counts itself: `with waiting(): gather(...)`.

Only calls that block the host are seen: all of gloo's; of NCCL's, those that end with a value on the host.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

_total = 0.0


def waited() -> float:
    """Return the seconds that this process has waited so far; differences of two calls are what counts."""
    return _total


@contextmanager
def waiting() -> Iterator[None]:
    """Count the time inside. Do not nest it: the inner time would count twice."""
    global _total
    began = perf_counter()
    try:
        yield
    finally:
        _total += perf_counter() - began
