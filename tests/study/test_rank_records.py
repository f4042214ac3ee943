"""What rows say of ranks: in the report's table, and in a sentence where one was slow."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from made_up import fake_row

from syncnorm.study import Study
from syncnorm.study.plan.spec import expand
from syncnorm.study.report.console import main_table
from syncnorm.study.report.ranks import ranks_table, slow_ranks
from syncnorm.study.report.report import write_report
from syncnorm.study.rows import Results, read
from syncnorm.study.run.store import Store

MIB = 1 << 20


def record(rank: int, seconds: float, samples: int = 100, host: str = "") -> dict[str, Any]:
    """Return the record of a rank that took part in ten seconds."""
    where = {"rank": rank, "host": host or f"node{rank}", "device": "cpu"}
    work = {"seconds": seconds, "waited": 10 - seconds, "samples": samples}
    return {**where, **work, "peak_memory": (rank + 1) * MIB}


def results(study: Study, folder: Path, *by_run: list[dict[str, Any]]) -> Results:
    """Return a results folder whose first runs have these records of ranks."""
    study = replace(study, vary={**study.vary, "norm": ["bn", "gn"]}, seeds=2, also=())
    with Store.open(folder, study) as store:
        for number, run in enumerate(expand(study)):
            row = fake_row(study.name, run)
            store.append({**row, "ranks": by_run[number]} if number < len(by_run) else row)
    return read(folder)


def test_a_slow_rank_is_named_and_bold(study: Study, tmp_path: Path) -> None:
    found = results(study, tmp_path, *[[record(0, 2.0), record(1, 5.0, 90), record(2, 2.2)]] * 2)
    (said,) = slow_ranks(found)
    assert said == ("Rank 1 of 3 on node1 was slow: it worked 10 s on 180 samples, and the others 4 s on 200.")
    assert f"\n{said[0].lower()}{said[1:]}" in main_table(found)
    table = ranks_table(found)
    assert table is not None
    ((heading, lines),) = table.blocks
    assert heading == "3 ranks"
    texts = [[cell.text for cell in line] for line in lines]
    assert texts[1] == ["1", "node1", "cpu", "2", "10.0", "10.0", "180", "18", "2"]
    assert [line[4].bold for line in lines] == [False, True, False]
    assert len(table.records) == 6
    assert table.records[1] == {"run_id": found.finished[0]["run_id"], "ranks": 3, **record(1, 5.0, 90)}
    page = write_report(tmp_path).read_text()
    assert said in page
    assert (tmp_path / "tables" / "ranks.csv").is_file()


def test_ranks_that_work_alike_or_shortly_are_not_slow(study: Study, tmp_path: Path) -> None:
    alike = [record(0, 5.0), record(1, 6.0)]
    shortly = [record(0, 0.2), record(1, 0.4)]
    found = results(study, tmp_path, alike, shortly)
    assert slow_ranks(found) == []
    table = ranks_table(found)
    assert table is not None
    assert table.caption.startswith("No rank was slow.")


def test_runs_of_other_numbers_of_ranks_and_machines_are_kept_apart(study: Study, tmp_path: Path) -> None:
    pair = [record(0, 2.0), record(1, 2.0)]
    moved = [record(0, 2.0), record(1, 9.0, host="old")]
    found = results(study, tmp_path, pair, moved, [record(rank, 1.0) for rank in range(3)])
    assert [said.partition(":")[0] for said in slow_ranks(found)] == ["Rank 1 of 2 on old was slow"]
    table = ranks_table(found)
    assert table is not None
    assert [(heading, len(lines)) for heading, lines in table.blocks] == [("2 ranks", 3), ("3 ranks", 3)]


def test_without_ranks_there_is_no_table(study: Study, tmp_path: Path) -> None:
    found = results(study, tmp_path)
    assert ranks_table(found) is None
    assert "ranks" not in found.finished[0]
