"""What the terminal shows, whatever signs it has."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from made_up import Fill

from syncnorm.study import Curve, Study
from syncnorm.study.report.console import main_table, plain, showable
from syncnorm.study.rows import read
from syncnorm.study.table import MINUS, NOTHING, Cell, Table


def test_a_terminal_without_the_signs_gets_others(study: Study, fill: Fill) -> None:
    curve = Curve("per_device_batch", "norm", where={"skew": 0.0})
    study = replace(study, vary={**study.vary, "norm": ["bn", "gn"]}, seeds=2, also=(), figures=(curve,))
    results = read(fill(study, keep=lambda run: run.world.per_device_batch != 8))
    text, plain_text = main_table(results, "utf-8"), main_table(results, "ascii")
    assert "±" in text
    assert NOTHING in text
    assert plain_text.isascii()
    assert plain_text.count("+-") == text.count("±")
    widths = {len(line) for line in plain_text.splitlines()[2:] if line}
    assert len(widths) == 1, "columns are aligned"


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        (f"{MINUS}5.0 ± 1.2", "ascii", "-5.0 +- 1.2"),
        (f"{MINUS}5.0 ± 1.2", "utf-8", f"{MINUS}5.0 ± 1.2"),
        ("5.0 ± 1.2", "latin-1", "5.0 ± 1.2"),
        (f"{MINUS}5.0 ± 1.2", "latin-1", "-5.0 +- 1.2"),
        ("“no gap” …", "ascii", '"no gap" ...'),
        ("modèle", "ascii", "mod?le"),
    ],
)
def test_signs_have_stand_ins(text: str, encoding: str, shown: str) -> None:
    assert showable(text, encoding) == shown


def test_headings_and_bold_stay() -> None:
    table = Table(
        "t", "Title", "", "norm", "±", ["1"], [("block ±", [[Cell("bn"), Cell("1.0 ± 0.1", True, "n = 2")]])]
    )
    assert plain(table, "ascii").splitlines() == [
        "Title",
        "norm \\ +-                    1",
        "block +-",
        "bn         1.0 +- 0.1 (n = 2)*",
    ]


def test_the_command_ends_well_on_an_ascii_terminal(study: Study, fill: Fill) -> None:
    study = replace(study, vary={**study.vary, "norm": ["bn", "gn"]}, seeds=2, also=())
    command = [sys.executable, "-m", "syncnorm", "report", str(fill(study))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=200)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" +- " in done.stdout
