"""docs/norms.md is held to the registry."""

from pathlib import Path

from syncnorm.norms import norm_names, norm_options, sees_batch

PAGE = Path(__file__).parents[2] / "docs" / "norms.md"
TORCHS = {"eps", "momentum", "affine", "track_running_stats", "device", "dtype"}
# Of torch's own layers and of what stands beside a convolution: not said on the page.
UNSAID = {"bn": {"bias"}}


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def test_every_norm_has_its_row_once() -> None:
    assert sorted(rows()) == sorted(norm_names())
    assert PAGE.read_text().count("\n| `") == len(norm_names())


def test_what_it_says_of_the_batch_and_of_options() -> None:
    for name, (sees, _, _, options, _) in rows().items():
        assert sees == ("yes" if sees_batch(name) else "no"), name
        said = {option.strip() for option in options.split(",") if option.strip()}
        assert said == set(norm_options(name)) - TORCHS - UNSAID.get(name, set()), name
