"""What claims are judged by: rows of their own experiments, and rows of studies."""

import ast
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from inspect import getsource
from pathlib import Path
from sys import modules
from types import ModuleType
from typing import Any

from syncnorm.environment import environment
from syncnorm.errors import UserError
from syncnorm.study.plan.spec import value_at
from syncnorm.study.rows import ABOUT, Results, Row, diverged, read, strict
from syncnorm.study.tuning.choose import edge_of, tuning_of

ROWS = "rows.jsonl"
Values = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What an experiment is given beside its seed."""

    rates: Mapping[str, float]
    """The learning rate that the study chose, by line: {"none": 0.1, "bn": 0.2}."""
    quick: bool = False


@dataclass(frozen=True)
class Experiment:
    """A measurement that claims read: `run(seed, setting)` returns plain data."""

    name: str
    seeds: int
    run: Callable[[int, Setting], Values]
    rates: tuple[str, ...] = ()
    """The lines whose chosen rates it needs."""

    @property
    def source(self) -> str:
        """Hash of the code that it runs: its module without claims and sentences, the network and the loop."""
        homes = (self.run.__module__, "experiments.claims.network", "experiments.claims.loop")
        code = "\n".join(_code(modules[home]) for home in homes if home in modules)
        return sha256(code.encode()).hexdigest()[:12]

    def key(self, seed: int, setting: Setting) -> dict[str, Any]:
        """Return what names a row: experiment, seed, and the part of the setting that it depends on."""
        rates = {line: setting.rates[line] for line in self.rates}
        return {"experiment": self.name, "seed": seed, "rates": rates, "quick": setting.quick, "source": self.source}


@dataclass(frozen=True)
class Evidence:
    """The rows by experiment and seed, and the studies in `studies`."""

    rows: dict[str, dict[int, Values]]
    studies: Mapping[str, Path] = field(default_factory=dict)

    def series(self, experiment: str, *names: str) -> list[tuple[Any, ...]]:
        """Return the values of these names in every row of an experiment, by seed; empty without rows."""
        found = self.rows.get(experiment, {})
        return [tuple(found[seed][name] for name in names) for seed in sorted(found)]

    def study(self, name: str) -> "StudyRows | None":
        """Return the rows that a study reports; None if its folder is not there."""
        folder = self.studies.get(name)
        return StudyRows(folder) if folder is not None and (folder / ABOUT).exists() else None


@dataclass(frozen=True)
class StudyRows:
    """The reported rows of a results folder."""

    folder: Path

    @cached_property
    def results(self) -> Results:
        """The results of the runs that the study reports."""
        return read(self.folder).reported

    def rows(self, **where: Any) -> dict[int, Row]:
        """Return the finished rows, by seed, whose fields have these values."""
        found = {}
        for row in self.results.finished:
            if all(value_at(row["config"], name) == value for name, value in where.items()):
                found[row["config"]["seed"]] = row
        return found

    def values(self, metric: str = "accuracy", **where: Any) -> dict[int, float]:
        """Return a metric by seed, of the rows that `where` selects and that did not diverge."""
        return {seed: row["metrics"][metric] for seed, row in self.rows(**where).items() if not diverged(row)}

    def edge(self, **where: Any) -> str:
        """Return at which edge of its range the learning rate of this line lies: "low", "high", or "" for neither."""
        row, tuning = next(iter(self.rows(**where).values()), None), tuning_of(self.results.about)
        if row is None or tuning is None:
            return ""
        name = self.results.about.runs[row["run_id"]].get("line")
        line = next((line for line in tuning.lines if line.name == name and "lr" in line.ranges), None)
        return edge_of(line, "lr", row["config"]["optim"]["lr"]) if line else ""


class Rows:
    """The file of rows, appended line by line; a context manager that locks it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ROWS

    def all(self) -> list[Row]:
        """Return the rows, ignoring an incomplete last line."""
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        rows: list[Row] = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append(json.loads(line))
                rows[-1]["key"]["experiment"], rows[-1]["values"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} is damaged in line {number}: remove that line.") from error
        return rows

    @contextmanager
    def writing(self) -> Iterator[Callable[[dict[str, Any], Values, float], None]]:
        """Lock the file and yield what appends a row: `append(key, values, seconds)`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"another process writes to {self.path}: wait for it, or choose another --out."
                ) from error
            whole = self.path.read_bytes().rfind(b"\n") + 1
            file.truncate(whole)

            def append(key: dict[str, Any], values: Values, seconds: float) -> None:
                row = {"key": key, "values": values, "seconds": round(seconds, 2), "environment": environment()}
                row["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
                file.write(json.dumps(strict(row), allow_nan=False, separators=(",", ":")).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

            yield append


def _code(module: ModuleType) -> str:
    """Return a module's code without its docstrings, its sentences, and what makes claims."""
    tree = ast.parse(getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            node.body = [one for one in node.body if not _sentence(one)] or [ast.Pass()]
    return "\n".join(text for node in tree.body if "Claim" not in (text := ast.unparse(node)))


def _sentence(node: ast.stmt) -> bool:
    """Return whether a statement is a docstring, or gives a name to words alone."""
    value = node.value if isinstance(node, ast.Expr | ast.Assign) else None
    return isinstance(value, ast.JoinedStr) or (isinstance(value, ast.Constant) and isinstance(value.value, str))
