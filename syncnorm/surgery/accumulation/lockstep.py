"""Functions that run side by side and meet: each waits at a meeting until all others have come to it.

Python cannot leave a model in the middle of its forward, so each function has a thread. Only one of them runs at a
time, in order, so modules and random numbers are used as in a loop.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch

Meet = Callable[[Any], Any]
"""Brings something to the next meeting, waits for all others, and returns what the meeting has for the caller."""
DEVICES = ("cpu", "cuda", "xpu", "mps")


class _Left(BaseException):
    """Ends a thread whose meeting will not take place."""


@dataclass
class _Function:
    """One of the functions, in its thread."""

    body: Callable[[Meet], Any]
    sent: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    brought: SimpleQueue[tuple[str, Any]] = field(default_factory=SimpleQueue)
    ended: bool = False
    result: Any = None

    def start(self, settings: Callable[[], Any]) -> None:
        """Start the thread; it waits for the first `advance`."""
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=lambda: context.run(self._run, settings), daemon=True)
        self.thread.start()

    def _run(self, settings: Callable[[], Any]) -> None:
        said: tuple[str, Any] = ("left", None)
        try:
            self._wait()
            with settings():
                said = ("ended", self.body(self._meet))
        except _Left:
            pass
        except BaseException as error:
            said = ("raised", error)
        self.brought.put(said)

    def _meet(self, thing: Any) -> Any:
        self.brought.put(("met", thing))
        return self._wait()

    def _wait(self) -> Any:
        given = self.sent.get()
        if given is _Left:
            raise _Left
        return given

    def advance(self, given: Any) -> Any:
        """Let it run to its next meeting or to its end, and return what it brings; raise what it raises."""
        self.sent.put(given)
        what, thing = self.brought.get()
        self.ended = what != "met"
        if what == "raised":
            raise thing
        if what == "ended":
            self.result = thing
        return thing

    def leave(self) -> None:
        """End its thread where it waits."""
        if not self.ended:
            self.sent.put(_Left)
        self.thread.join()


def run_in_lockstep(
    bodies: Sequence[Callable[[Meet], Any]],
    together: Callable[[list[Any]], Sequence[Any]],
    apart: Callable[[int, int], Exception],
) -> list[Any]:
    """Run all bodies to their end, and return their results.

    Args:
        bodies: functions of `meet`.
        together: called at each meeting with what the bodies bring, in their order; returns what each gets.
        apart: builds the error for a body (the first number) that ends where another (the second) comes to a meeting.

    Raises:
        Whatever a body or a meeting raises; the others are ended first.
    """
    functions = [_Function(body) for body in bodies]
    settings = _settings_here()
    for function in functions:
        function.start(settings)
    try:
        given: Sequence[Any] = [None] * len(functions)
        while True:
            brought = [function.advance(thing) for function, thing in zip(functions, given, strict=True)]
            ended = [index for index, function in enumerate(functions) if function.ended]
            if len(ended) == len(functions):
                return [function.result for function in functions]
            if ended:
                raise apart(ended[0], next(index for index, f in enumerate(functions) if not f.ended))
            given = together(brought)
    finally:
        for function in functions:
            function.leave()


def _settings_here() -> Callable[[], Any]:
    """Return a context that sets up another thread as this one: gradients, autocast, device and stream."""
    recorded = torch.is_grad_enabled()
    mixed = [(kind, torch.get_autocast_dtype(kind)) for kind in DEVICES if torch.is_autocast_enabled(kind)]
    cached = torch.is_autocast_cache_enabled()
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None

    @contextmanager
    def settings() -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(recorded))
            for kind, dtype in mixed:
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cached))
            if stream is not None:
                stack.enter_context(torch.cuda.stream(stream))
            yield

    return settings
