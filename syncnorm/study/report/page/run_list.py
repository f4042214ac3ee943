"""The page of a study's runs: a table to search and to sort, with a small line of each run's history."""

import json
from html import escape
from math import isfinite
from typing import Any

from syncnorm.study.plan.spec import flatten
from syncnorm.study.report.analysis.labels import field_label, metric_label, value_label
from syncnorm.study.report.page.frame import Section, page
from syncnorm.study.report.render import LeftOut, stored_plots
from syncnorm.study.rows import TUNING, Results, Row, at_chance, diverged

MOST_METRICS = 4
POINTS = 24
"""Most points of a run's history."""
HISTORIES = ("validation_accuracy", "accuracy", "train_loss")
"""The first of these that a row has is shown, else its first history."""


def runs_page(results: Results) -> str:
    """Return the page of all runs that have ended.

    Without JavaScript it points to the same rows as CSV.
    """
    rows = sorted([*results.finished, *results.failed], key=lambda row: row.get("purpose") == TUNING)
    fields = _varied([flatten(row["config"]) for row in rows])
    metrics = _metrics(results)
    numbers = [metric_label(name).title for name in metrics]
    columns = ["run", "role", "seed", *numbers, "seconds", "trouble", *map(_words, fields)]
    data = {"columns": columns, "rows": [[_cells(row, fields, metrics, results), _history(row)] for row in rows]}
    # A closing tag inside a JSON text would end the script element.
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    body = (
        '<p><label>Search <input id="search" type="search" placeholder="words that a row has"></label> '
        '<span id="count" role="status"></span></p>\n'
        '<div class="wide" tabindex="0" role="region" aria-label="All runs"><table class="runs"></table></div>\n'
        "<noscript><p>The table needs JavaScript. The same rows: "
        '<a href="tables/runs.csv">runs.csv</a>.</p></noscript>\n'
        f'<script type="application/json" id="runs-data">{text}</script>'
    )
    back = f'<a href="report.html">{escape(results.about.study)}</a>'
    head = f'<header>\n<p class="eyebrow">{back}</p>\n<h1>Runs</h1>\n</header>'
    return page(f"Runs of {results.about.study}", head, [Section("All runs", body)])


def _varied(configs: list[dict[str, Any]]) -> list[str]:
    """Return the fields that differ between runs, except the seed."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [
        name for name in names if name != "seed" and len({json.dumps(config.get(name)) for config in configs}) > 1
    ]


def _words(field: str) -> str:
    """Return the words of a field by its dotted path: those of its last part, unless that alone says too little."""
    first, _, last = field.rpartition(".")
    return field_label(first if last == "name" else last)


def _metrics(results: Results) -> list[str]:
    """Return the first metrics that the study's plots read."""
    plots = [found[1] for found in stored_plots(results.reported) if not isinstance(found, LeftOut)]
    there = {name for row in results.finished for name in row["metrics"]}
    return [name for name in dict.fromkeys(name for plot in plots for name in plot.reads().metrics) if name in there][
        :MOST_METRICS
    ]


def _cells(row: Row, fields: list[str], metrics: list[str], results: Results) -> list[str]:
    config = flatten(row["config"])
    role = " ".join(results.about.runs[row["run_id"]].get("role", []))
    shown = [value_label(config[name]) if config.get(name) is not None else "" for name in fields]
    return [
        row["run_id"],
        role,
        str(row["config"]["seed"]),
        *(_number(row, name) for name in metrics),
        f"{row['seconds']:.1f}",
        _trouble(row),
        *shown,
    ]


def _number(row: Row, name: str) -> str:
    value = row.get("metrics", {}).get(name)
    if value is None:
        return ""
    metric = metric_label(name)
    return f"{value * metric.scale:.{metric.decimals}f}"


def _trouble(row: Row) -> str:
    if "metrics" not in row:
        return f"failed: {row['error']}"
    return "diverged" if diverged(row) else "at chance" if at_chance(row) else ""


def _history(row: Row) -> list[Any] | None:
    """Return a history's name, its first and last value, and its course from 0 (lowest) to 100; None without one."""
    histories = {name: values for name, values in (row.get("history") or {}).items() if values}
    name = next((one for one in (*HISTORIES, *histories) if one in histories), None)
    if name is None:
        return None
    values = [float(value) for value in histories[name] if isinstance(value, int | float) and isfinite(value)]
    if len(values) < 2:
        return None
    step = max(1.0, (len(values) - 1) / (POINTS - 1))
    chosen = [values[round(index * step)] for index in range(int((len(values) - 1) / step) + 1)]
    low, high = min(values), max(values)
    heights = [round(100 * (value - low) / (high - low)) if high > low else 50 for value in chosen]
    return [name, f"{values[0]:.4g}", f"{values[-1]:.4g}", heights]
