"""docs/norms.md is held to the registry."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import syncnorm
from syncnorm import convert
from syncnorm.norms import NORMS, norm_names, norm_options, sees_batch

PAGE = Path(__file__).parents[2] / "docs" / "norms.md"
TORCHS = {"eps", "momentum", "affine", "track_running_stats", "device", "dtype"}


def rows(section: int) -> dict[str, list[str]]:
    """The rows of the tables before the heading "How a row reads" (0), or after it (1)."""
    text = PAGE.read_text().split("## How a row reads")[section]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(lines) == len(norm_names())
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first.strip("`"): rest for first, *rest in cells}


def is_batch_norm(name: str) -> bool:
    """Whether it has torch's constructor, which the page does not repeat."""
    layer = NORMS[name].layer
    return isinstance(layer, type) and issubclass(layer, _BatchNorm)


@pytest.mark.parametrize("section", [0, 1])
def test_every_norm_has_its_row_once(section: int) -> None:
    assert sorted(rows(section)) == sorted(norm_names())


def test_what_it_says_of_the_batch_and_of_options() -> None:
    for name, (sees, _, _, options, _) in rows(0).items():
        assert sees == ("yes" if sees_batch(name) else "no"), name
        said = {option.strip() for option in options.split(",") if option.strip()}
        known = TORCHS | ({"bias"} if is_batch_norm(name) else set())
        known |= {"sync", "process_group"} if NORMS[name].over_ranks == "sync" else set()
        assert said == set(norm_options(name)) - known, name


def test_what_it_says_of_the_facts() -> None:
    for name, said in rows(1).items():
        spec = NORMS[name]
        batch = "all ranks'" if spec.shares({}) else "one device's" if spec.sees_batch else "no other"
        shared = {True: "all ranks", "sync": "`sync`"}.get(spec.over_ranks) or (
            f"by rank: {spec.by_rank}" if spec.sees_batch else "nothing to share"
        )
        virtual = spec.on_ranks or ("channels" if spec.by_channel else "copies") if spec.by_device({}) else "one"
        folds = "yes" if callable(spec.fold) else "no"
        from_world = ", ".join(f"{option} = {fact}" for option, fact in spec.from_world.items())
        assert said == [spec.side, batch, shared, virtual, spec.evaluates, folds, from_world], name


def test_the_norm_that_it_registers_works(registries: None) -> None:
    *_, program = re.findall("```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(program, {"syncnorm": syncnorm, "torch": torch})
    model = convert(nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), "centred", momentum=1.0)
    x = torch.randn(5, 2, 4, 4)
    y = model(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(model.eval()(x), y)
