"""docs/policies.md says what the table says."""

from pathlib import Path

from syncnorm.federated import POLICIES

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_the_page_has_every_row_of_the_table() -> None:
    rows = [
        f"| `{name}` | {row.affine} | {row.statistics} | {row.rest} | {row.training} | {row.statistics_source} | "
        f"{', '.join(f'{option} {value:g}' for option, value in row.options.items())} | {row.source} |"
        for name, row in POLICIES.items()
    ]
    written = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert written == rows
