"""A context in which this process works as if it were the only rank: no layer of syncnorm talks to others.

Ranks that share out the work of a test, or try a model out, do not run the same layers at the same time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from syncnorm.norms.core.opened import Opened

_ALONE: ContextVar[bool] = ContextVar("syncnorm_alone", default=False)
_OPENED = Opened()


@contextmanager
def alone() -> Iterator[None]:
    """Let layers and `recalibrate`, called inside in this thread, see this process as the only rank."""
    _OPENED.count(1)
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)
        _OPENED.count(-1)


def is_alone() -> bool:
    """Return whether this is inside `alone`."""
    return _OPENED.any and _ALONE.get()
