"""The short form of the campaign of faults (`make faults`): a few cases of each part, and how outcomes are kept."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import CLIENTS, DEVICES, run

PROGRAM = Path(__file__).with_name("campaign.py")


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the program as a module, whose folders are on the path during the test alone."""
    monkeypatch.setattr(sys, "path", [str(PROGRAM.parent), *sys.path])
    import campaign

    return campaign  # type: ignore[return-value]


@pytest.mark.dist
@pytest.mark.fault
@pytest.mark.parametrize(
    ("part", "case", "kinds"),
    [
        ("kills", "clients, scaffold on disk", {}),
        ("odd_ranks", "1 to 5", {"even ways, all equal to one process with the whole batch": 1}),
        ("writers", "checkpoints 0", {}),
        ("writers", "files 0", {}),
    ],
)
def test_a_case(part: str, case: str, kinds: dict[str, int], tmp_path: Path) -> None:
    done = run(PROGRAM, part, "--case", case, "--folder", str(tmp_path / "case"), imports=f"{DEVICES} {CLIENTS}")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert all(count > 0 for count in counts.values())
    assert counts.items() >= kinds.items(), counts


def test_outcomes_are_kept_case_by_case(
    campaign: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    played: list[str] = []

    def play(name: str, folder: Path) -> Counter[str]:
        assert list(folder.iterdir()) == []
        played.append(name)
        if name == "b":
            raise TimeoutError("hung: it did not end")
        return Counter({"kills": 2, f"ends of {name}": 1})

    fake = SimpleNamespace(cases=lambda small: ["a", "b"] if small else ["a", "b", "c"], play=play, lacks=str)
    monkeypatch.setitem(sys.modules, "fake", fake)
    monkeypatch.setitem(campaign.PARTS, "fake", campaign.Part("Faults that are made up", 1, 60))
    campaign.serve("fake", False, tmp_path)
    campaign.serve("fake", False, tmp_path)
    assert played == ["a", "b", "c"]
    lines = campaign.table(["fake"], tmp_path).splitlines()
    assert lines[0] == "fake: Faults that are made up"
    assert [line.split(maxsplit=1) for line in lines[1:4]] == [["4", "kills"], ["1", "ends of a"], ["1", "ends of c"]]
    assert lines[4].startswith("  3 of 3 cases played, 1 failed, ")
    assert lines[5] == "    b: TimeoutError: hung: it did not end"
    assert "fake 3/3, 1 failed, 0 s left: c" in capsys.readouterr().err


def test_a_part_that_cannot_be_played_says_why(
    campaign: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fake", SimpleNamespace(cases=lambda small: ["a"], lacks=lambda: "no disk."))
    monkeypatch.setitem(campaign.PARTS, "fake", campaign.Part("Faults that are made up", 1, 60))
    campaign.serve("fake", True, tmp_path)
    assert "  not played: no disk." in campaign.table(["fake"], tmp_path)
