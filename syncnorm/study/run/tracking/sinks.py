"""The experiment trackers: how each logs runs and reports. A new tracker is a class and a row of `SINKS`,
and has a name in `tracking.NAMES`."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from syncnorm.study.plan.spec import WORLDS
from syncnorm.study.rows import Row


class Followed(Protocol):
    """A run in a tracker."""

    def advance(self, news: dict[str, Any]) -> None:
        """Log a `Progress` as plain data; its "metrics" are those of an epoch or round."""

    def end(self, row: Row) -> None:
        """Log the run's row, with the missing part of its history."""

    def leave(self) -> None:
        """Close a run that has not ended."""


class Sink(Protocol):
    """A tracker."""

    def start(self, directory: Path, study: str, name: str, label: str, config: dict[str, Any]) -> Followed:
        """Open or reopen a run: `name` is its id in syncnorm, `label` is for readers."""

    def report(self, directory: Path, study: str, folder: str) -> None:
        """Log the tables and figures of the results folder with the id `folder`."""


class _Steps:
    """Keeps track of the logged epochs or rounds of a run: each is logged once, in order."""

    def __init__(self, log: Callable[[int, dict[str, float]], None]) -> None:
        self._log, self._last = log, 0

    def take(self, step: int, values: dict[str, float | None]) -> None:
        """Log a step's values, unless it or a later step was logged before."""
        if step > self._last:
            self._last = step
            self._log(step, {name: value for name, value in values.items() if value is not None})


def steps_of(history: dict[str, list[Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the epochs or rounds of a history, from 1, with their values."""
    at = history.get("accuracy_at", [])
    total = max(map(len, history.values()), default=0)
    rows: dict[int, dict[str, Any]] = {}
    for name, values in history.items():
        if name == "accuracy_at":
            continue
        places = at if len(values) == len(at) < total else range(1, len(values) + 1)
        for place, value in zip(places, values, strict=False):
            rows.setdefault(int(place), {})[name] = value
    yield from sorted(rows.items())


def facts(row: Row) -> dict[str, Any]:
    """Return a row's information about a run other than its numbers."""
    commit = row.get("environment", {}).get("commit", "")
    diverged = {"diverged": True} if row.get("details", {}).get("diverged") else {}
    return {"evaluated_by": row.get("evaluated_by", ""), "commit": commit, **diverged}


class Wandb:
    """Weights & Biases: one W&B run per run, grouped by study; tables and figures as an artifact of a separate
    run."""

    def __init__(self, mode: str) -> None:
        self._mode = mode

    def start(self, directory: Path, study: str, name: str, label: str, config: dict[str, Any]) -> Followed:
        """Open a run, or reopen it."""
        kind = config["world"]["kind"]
        tags = [study, kind, config["norm"]["name"], config["model"]]
        return _WandbRun(self._open(directory, study, name, label, kind, config=config, tags=tags), kind)

    def report(self, directory: Path, study: str, folder: str) -> None:
        """Log the tables, the figures and the page as one artifact."""
        import wandb

        run = self._open(directory, study, f"report-{folder}", f"report of {study}", "report")
        artifact = wandb.Artifact(f"{study}-report", type="report")
        for part in ("tables", "figures"):
            if (directory / part).is_dir():
                artifact.add_dir(str(directory / part), name=part)
        if (directory / "report.html").exists():
            artifact.add_file(str(directory / "report.html"))
        run.log_artifact(artifact)
        run.finish()

    def _open(self, directory: Path, study: str, name: str, label: str, job: str, **more: Any) -> Any:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, x_disable_stats=True)
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "syncnorm"),
            group=study,
            id=name,
            name=label,
            job_type=job,
            dir=str(directory),
            mode="online" if self._mode == "online" else "offline",
            resume="allow",
            reinit="create_new",
            settings=quiet,
            **more,
        )


class _WandbRun:
    def __init__(self, run: Any, kind: str) -> None:
        self._run, self._unit = run, WORLDS[kind].step
        self._steps = _Steps(lambda step, values: run.log({self._unit: step, **values}, step=step))

    def advance(self, news: dict[str, Any]) -> None:
        if news["metrics"]:
            self._steps.take(news["done"], news["metrics"])
        now = {"progress": news["fraction"], "steps_per_second": news["steps_per_second"]}
        self._run.summary.update(now)

    def end(self, row: Row) -> None:
        for step, values in steps_of(row.get("history", {})):
            self._steps.take(step, values)
        self._run.config.update(facts(row), allow_val_change=True)
        self._run.summary.update({**row.get("metrics", {"error": row.get("error", "")}), "seconds": row["seconds"]})
        self._run.finish(exit_code=1 if "error" in row else 0)

    def leave(self) -> None:
        self._run.finish(exit_code=255)


class TensorBoard:
    """TensorBoard: one folder of event files per run, in DIR/tensorboard; figures stay in the results folder."""

    def __init__(self, mode: str) -> None:
        pass

    def start(self, directory: Path, study: str, name: str, label: str, config: dict[str, Any]) -> Followed:
        """Open a run's folder."""
        from torch.utils.tensorboard import SummaryWriter

        plain = "".join(letter if letter.isalnum() or letter in " .-=_" else "_" for letter in label)
        writer = SummaryWriter(str(directory / "tensorboard" / f"{plain} {name}"))
        writer.add_text("config", f"    {json.dumps(config)}")
        return _TensorBoardRun(writer)

    def report(self, directory: Path, study: str, folder: str) -> None:
        """Do nothing: TensorBoard keeps no files."""


class _TensorBoardRun:
    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._steps = _Steps(self._log)

    def _log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def advance(self, news: dict[str, Any]) -> None:
        if news["metrics"]:
            self._steps.take(news["done"], news["metrics"])

    def end(self, row: Row) -> None:
        last = 0
        for step, values in steps_of(row.get("history", {})):
            self._steps.take(step, values)
            last = step
        for name, value in row.get("metrics", {}).items():
            if value is not None:
                self._writer.add_scalar(f"end/{name}", value, last)
        text = {**facts(row), "seconds": row["seconds"], **({"error": row["error"]} if "error" in row else {})}
        self._writer.add_text("end", f"    {json.dumps(text)}")
        self._writer.close()

    def leave(self) -> None:
        self._writer.close()


SINKS: dict[str, Callable[[str], Sink]] = {"wandb": Wandb, "tensorboard": TensorBoard}
"""Factories of trackers by name; each takes the mode ("online" or "offline")."""
