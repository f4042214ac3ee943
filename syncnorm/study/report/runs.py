"""The tables of a study's runs: all of them, those that failed, and those that diverged."""

from typing import Any

from syncnorm.study.plan.spec import flatten
from syncnorm.study.report.analysis.labels import setting
from syncnorm.study.rows import Results, Row, at_chance, diverged
from syncnorm.study.table import NOTHING, Cell, Table

MAIN = (
    "method",
    "algorithm",
    "count",
    "participation",
    "ranks",
    "per_device_batch",
    "skew",
    "domain_skew",
    "alpha",
    "domains",
    "unseen",
    "batches",
    "adapt",
)
"""The fields of a world that best describe a run."""


def failures(failed: list[Row]) -> Table:
    """Return the table of failed runs, with the reasons."""
    return Table(
        name="failures",
        title="Failed runs",
        caption="They are in no mean above. The next start of the study tries them again.",
        corner="run",
        span="",
        header=["settings", "error"],
        blocks=[("", [[Cell(row["run_id"]), Cell(run_words(row)), Cell(row["error"])] for row in failed])],
        records=[{"run_id": row["run_id"], "error": row["error"], **flatten(row["config"])} for row in failed],
    )


def divergences(rows: list[Row]) -> Table:
    """Return the table of runs that ended with numbers that are not finite."""
    lost = {row["run_id"]: [name for name, value in row["metrics"].items() if value is None] for row in rows}
    return Table(
        name="diverged",
        title="Diverged runs",
        caption="Their numbers stopped being finite while they trained, so they are in no mean above.",
        corner="run",
        span="",
        header=["settings", "not finite at the end"],
        blocks=[
            (
                "",
                [
                    [Cell(row["run_id"]), Cell(run_words(row)), Cell(", ".join(lost[row["run_id"]]) or NOTHING)]
                    for row in rows
                ],
            )
        ],
        records=[{"run_id": row["run_id"], **flatten(row["config"])} for row in rows],
    )


def run_words(row: Row) -> str:
    """Return a row's main settings: "bn, devices 8, samples per device 4, label-sorted data 0 %, seed 0"."""
    return f"{settings_words(row)}, seed {row['config']['seed']}"


def settings_words(row: Row) -> str:
    """Return the same without the seed."""
    config = row["config"]
    parts = [setting(name, config["world"][name]) for name in MAIN if config["world"].get(name) not in (None, [])]
    return ", ".join([config["norm"]["name"], *parts])


def run_records(results: Results) -> list[dict[str, Any]]:
    """Return every row of the study as a flat record: settings, metrics, evaluated by, seconds, or the error."""
    return [
        {
            "run_id": row["run_id"],
            "role": " ".join(results.about.runs[row["run_id"]].get("role", [])),
            **{f"config.{name}": value for name, value in flatten(row["config"]).items()},
            **{f"metrics.{name}": value for name, value in row.get("metrics", {}).items()},
            "evaluated_by": row.get("evaluated_by"),
            "seconds": row["seconds"],
            "finished": row["finished"],
            "error": row.get("error"),
            **({"diverged": True} if "metrics" in row and diverged(row) else {}),
            **({"at_chance": True} if "metrics" in row and at_chance(row) else {}),
        }
        for row in [*results.finished, *results.failed]
    ]
