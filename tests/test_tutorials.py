"""The tutorials of the manual: their files, commands and code run in order, and print what the pages show."""

import io
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from processes import COMPILER, torchrun
from processes import run as run_process

PAGES = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.M | re.S)
IMPORTS = f"{COMPILER} sklearn.datasets lightning.pytorch syncnorm.surgery syncnorm.training"
DECIMAL = re.compile(r"(± )?(\d+\.(\d+))(?:(?= ± (\d+\.\d+)))?")
WITHIN = 0.05
"""By which share a number with decimals may differ, or by one in its last digit: training rounds otherwise on another
processor. A mean may be anywhere in its interval, whose half width is as wide as it comes out."""


def outputs(page: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Run a page in a folder; yield each text that it shows, and what the blocks before it printed.

    A block of Python with a title is a file. The others share their names. Of the commands, torchrun, python and
    syncnorm are run.
    """
    names: dict[str, Any] = {"__name__": "tutorial"}
    said = ""
    for language, title, body in BLOCK.findall(page.read_text()):
        if title:
            (folder / title).parent.mkdir(parents=True, exist_ok=True)
            (folder / title).write_text(body)
        elif language == "python":
            with redirect_stdout(io.StringIO()) as output:
                exec(compile(body, f"a block of {page.name}", "exec"), names)
            said += output.getvalue()
        elif language == "sh":
            said += "".join(command(shlex.split(line, comments=True), folder) for line in body.splitlines())
        elif language == "text":
            yield body, said
            said = ""
    assert not said, f"{page.name} does not show what its last blocks print: {said}"


def command(words: list[str], folder: Path) -> str:
    """Run a command in a folder; return what it prints, without what a study says of its progress.

    A command that starts something elsewhere is left out.
    """
    match words:
        case ["torchrun", "--nproc-per-node", ranks, program, *rest]:
            done = torchrun(int(ranks), folder / program, *rest, imports=IMPORTS, cwd=folder)
            return "".join(one.stdout for one in done)
        case ["python", program, *rest]:
            alone = run_process(folder / program, *rest, imports=IMPORTS, cwd=folder)
        case ["syncnorm", "run", *rest]:
            alone = run_process("syncnorm", "run", *rest, "--jobs", "1", imports=IMPORTS, cwd=folder)
            assert alone.returncode == 0, alone.stderr
            return ""
        case ["syncnorm", *rest]:
            alone = run_process("syncnorm", *rest, imports=IMPORTS, cwd=folder)
        case _:
            return ""
    assert alone.returncode in (0, 1), alone.stderr  # 1: the doctor has found something
    return alone.stdout


def same(shown: str, printed: str) -> bool:
    """Return whether two texts have the same words and whole numbers, and about the same decimals."""
    if DECIMAL.sub("#", shown).split() != DECIMAL.sub("#", printed).split():
        return False
    pairs = zip(DECIMAL.findall(shown), DECIMAL.findall(printed), strict=True)
    return all(is_half or _close(one, other, digits, half) for (is_half, one, digits, half), (_, other, *_) in pairs)


def _close(one: str, other: str, digits: str, half: str) -> bool:
    within = max(WITHIN * float(one), 1.01 * 10 ** -len(digits), float(half or 0))
    return abs(float(one) - float(other)) <= within


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_tutorial_prints_what_it_shows(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for name in imported(page):
        monkeypatch.delitem(sys.modules, name)
    texts = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for shown, printed in outputs(page, tmp_path):
            assert same(shown, printed), f"{page.name} shows\n{shown}\nand its code prints\n{printed}"
            texts += 1
    assert texts
    for name in imported(page):
        del sys.modules[name]


def imported(page: Path) -> list[str]:
    """Return the modules that are there under a name of the page's files; other tests have some of the same name."""
    own = {Path(title).parts[0].removesuffix(".py") for _, title, _ in BLOCK.findall(page.read_text()) if title}
    return [name for name in sys.modules if name.split(".")[0] in own]


def test_outputs_that_differ_are_told_apart() -> None:
    assert same("90.1 % of 5\n", "90.2 % of  5")
    assert not same("90.1 % of 5\n", "80.1 % of 5")
    assert not same("90.1 % of 5\n", "90.1 % of 6")
    assert not same("90.1 %\n", "90.1 % more")
    assert same("0.7 of 90.1 ± 3.2", "0.8 of 90.1 ± 4.7")
    assert not same("0.7 of 90.1 ± 3.2", "0.9 of 90.1 ± 3.2")
    assert same("2.0 ± 3.2", "4.5 ± 4.1")
    assert not same("2.0 ± 3.2", "6.0 ± 4.1")
    assert not same("90.1 ± 3.2", "90.1")
