"""The log of a run's rounds: losses, bytes, and clients that were left out."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

COUNTS = ("bytes_down", "bytes_up", "clients_left_out", "small_batches", "idle")


class Log:
    """The log of a run.

    history: one value per round, by name.
    counts: sums over the rounds played so far, by name.
    left_out: why clients were left out, by "round R, client K".
    last_seen: the last round, from 0, in which a client's update was used.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {"train_loss": [], "left_out": []}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.left_out: dict[str, str] = {}
        self.last_seen: dict[int, int] = {}

    def add(self, **counts: int) -> None:
        """Add to counts."""
        for name, value in counts.items():
            self.counts[name] += value

    def note(self, name: str, value: float) -> None:
        """Append a round's value to the history of `name`."""
        self.history.setdefault(name, []).append(value)

    def close_round(self, round_: int, used: list[int], left_out: Mapping[int, str], loss: float) -> None:
        """Record the outcome of a round's replies."""
        self.add(clients_left_out=len(left_out))
        self.left_out |= {f"round {round_ + 1}, client {client}": why for client, why in left_out.items()}
        self.last_seen |= dict.fromkeys(used, round_)
        self.note("train_loss", loss)
        self.note("left_out", float(len(left_out)))

    def metrics(self, trainees: int, rounds: int) -> dict[str, float]:
        """Return the log's metrics after `rounds` rounds of a run in which `trainees` clients train."""
        counts = {name: float(value) for name, value in self.counts.items()}
        return counts | {
            "bytes_total": counts["bytes_down"] + counts["bytes_up"],
            "train_loss": self.history["train_loss"][-1],
            "never_sampled": float(trainees - len(self.last_seen)),
            "staleness": fmean(rounds - 1 - last for last in self.last_seen.values()),
        }

    def remember(self) -> dict[str, Any]:
        """Return the log as plain data."""
        return {
            "history": self.history,
            "counts": self.counts,
            "left_out": self.left_out,
            "last_seen": self.last_seen,
        }

    def recall(self, known: Mapping[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        self.history, self.counts = known["history"], known["counts"]
        self.left_out, self.last_seen = known["left_out"], known["last_seen"]
