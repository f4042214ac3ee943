"""docs/policies.md says what the tables say."""

import re
import sys
from inspect import getmodule
from pathlib import Path

from syncnorm.federated import ALGORITHMS, POLICIES, Algorithm

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def rows_below(heading: str) -> list[list[str]]:
    """Return the cells of the table rows, with a name in code, that follow a heading of some table."""
    _, rest = PAGE.read_text().split(heading)
    table = rest.strip().split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def test_the_page_has_every_row_of_the_table() -> None:
    rows = [
        [
            f"`{name}`",
            *(row.affine, row.statistics, row.rest, row.training, row.statistics_source),
            ", ".join(f"{option} {value:g}" for option, value in row.options.items()),
            row.source,
        ]
        for name, row in POLICIES.items()
    ]
    assert (
        rows_below(
            "| name | affine | statistics | everything else | normaliser in training | statistics come from | "
            "options | source |\n"
        )
        == rows
    )


def test_the_page_has_every_algorithm_with_its_options_and_source() -> None:
    rows = []
    for name, kind in ALGORITHMS.items():
        options = ", ".join(f"{option} {value.default}" for option, value in kind.OPTIONS.items())
        module = getmodule(kind)
        assert module is sys.modules[kind.__module__]
        rows.append([f"`{name}`", options, (module.__doc__ or "").strip()])
    assert rows_below("| name | options | source |\n") == rows


def test_the_page_has_every_hook() -> None:
    switches = {"needs_average", "shares_statistics", "has_local_term", "sends_more"}
    hooks = {f"`{name}`" for name in dir(Algorithm) if not name.startswith("_")} - {f"`{name}`" for name in switches}
    assert {row[0] for row in rows_below("| hook | where | what it gives |\n")} == hooks


def test_what_tuning_chose_for_options_stands_in_its_table() -> None:
    chosen = (PAGE.parents[1] / "results/client_skew/tables/chosen.md").read_text()
    heading = "| option | default, and where it is from | tried | chosen at alpha 0.1, 1, 100 | with five domains |\n"
    said = rows_below(heading)
    assert len(said) == 3
    for option, _, _, *cells in said:
        name = option.split("`")[-2]
        rows = re.findall(rf"^\| (?:fedavg \+ )?{name} .*$", chosen, flags=re.M)
        for number, row in zip(", ".join(cells).split(", "), rows, strict=True):
            assert f"| {number} |" in row
