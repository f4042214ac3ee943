"""Partitions of data among clients: one figure for every partition of a study."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from syncnorm.study.report.analysis.labels import setting
from syncnorm.study.report.drawing.partition_figure import partition_figure
from syncnorm.study.report.drawing.style import write_image
from syncnorm.study.rows import Results, Row

PARTITION = ("count", "domains", "skew", "alpha", "skew_options", "noise", "equal_size", "held_out", "unseen")
"""The fields of the clients world that determine the partition."""
NAMED = ("count", "domains", "skew", "alpha", "noise", "held_out", "unseen")


def partitions(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Return a description of every partition of the study, with the card of its first finished run."""
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for row in results.finished:
        card = row.get("details", {}).get("partition", {})
        if "clients" in card:  # with very many clients, a card has only a summary
            config = row["config"]
            key = json.dumps([config["data"], *(config["world"].get(name) for name in PARTITION)], sort_keys=True)
            first.setdefault(key, (_words(row), card))
    return list(first.values())


def write_partition(card: dict[str, Any], folder: Path, name: str, formats: Sequence[str]) -> None:
    """Write the figure of a card as NAME.FORMAT, once per format."""
    write_image(lambda: partition_figure(card), folder, name, formats)


def _words(row: Row) -> str:
    config, world = row["config"], row["config"]["world"]
    parts = [setting(name, world[name]) for name in NAMED if world.get(name) not in (None, [], 0, 0.0)]
    name = [] if world["domains"] else [config["data"]["name"]]
    return ", ".join([*name, *parts, f"seed {config['seed']}"])
