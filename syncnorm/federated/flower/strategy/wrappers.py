"""Strategies of Flower that wrap another one, such as those of differential privacy."""

import sys
from types import FrameType

from flwr.serverapp.strategy import Strategy


def wrapper_of(strategy: Strategy) -> Strategy | None:
    """Return the strategy that is calling a method of `strategy`, which it wraps; None if there is none.

    Flower tells a wrapped strategy nothing of its wrapper, so the calls that are under way are looked through.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        other = frame.f_locals.get("self")
        if isinstance(other, Strategy) and getattr(other, "strategy", None) is strategy:
            return other
        frame = frame.f_back
    return None
