"""The claims about batch norm: the rule of verdicts, an exact claim, resuming, and what the pages name."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments.claims import __main__ as command
from experiments.claims.catalogue import CLAIMS, EXPERIMENTS
from experiments.claims.claim import (
    FAILS,
    HOLDS,
    MISSING,
    OPEN,
    UNTESTABLE,
    Claim,
    Measured,
    Region,
    judge,
)
from experiments.claims.evidence import Evidence, Experiment, Rows, Setting
from experiments.claims.layers import CLAIMS as EXACT
from experiments.claims.layers import bias, coupling
from experiments.claims.page import write_pages
from experiments.claims.speed import reached
from experiments.claims.steps import times_fewer
from syncnorm.errors import UserError
from syncnorm.study.report.page.site import index_page


def made_up(name: str = "one", region: Region = Region(low=1.0), **more: str) -> Claim:  # noqa: B008
    return Claim(
        name, f"Claim {name} <b>", "a source", "2 times", "how", "times", region, lambda evidence: None, **more
    )


def word(region: Region, values: tuple[float, ...], **more: object) -> str:
    return judge([made_up(region=region)], {"one": Measured(values, **more)})[0].verdict  # type: ignore[arg-type]


CLOSE = (2.0, 2.1, 1.9, 2.05, 1.95)


@pytest.mark.parametrize(
    ("region", "values", "more", "expected"),
    [
        (Region(low=1), CLOSE, {}, HOLDS),
        (Region(high=1), CLOSE, {}, FAILS),
        (Region(low=2), CLOSE, {}, OPEN),  # the interval holds the end
        (Region(1, 3), CLOSE, {}, HOLDS),
        (Region(3, 4), CLOSE, {}, FAILS),
        (Region(1, 2), CLOSE, {}, OPEN),
        (Region(low=1), CLOSE[:4], {}, OPEN),  # too few seeds
        (Region(low=1), (2.0,) * 5, {}, HOLDS),  # no spread
        (Region(low=2), (2.0,) * 5, {}, OPEN),  # no spread, at the end itself
        (Region(low=1), CLOSE, {"log": True}, HOLDS),
        (Region(low=1), (0.1, 0.2, 0.1, 0.15, 9.0), {"log": True}, OPEN),
        (Region(low=1), (0.1, 0.2, 0.1, 0.15, 0.1), {"log": True}, FAILS),
        (Region(high=1), (0.5, 0.2), {"kind": "exact"}, HOLDS),
        (Region(high=1), (0.5, 1.2), {"kind": "exact"}, OPEN),
        (Region(high=1), (1.5, 1.2), {"kind": "exact"}, FAILS),
        (Region(low=0, high=0), (0.0,), {"kind": "exact"}, HOLDS),
    ],
)
def test_the_rule(region: Region, values: tuple[float, ...], more: dict[str, object], expected: str) -> None:
    assert word(region, values, **more) == expected


def test_many_claims_cost_a_close_one_its_verdict() -> None:
    close = (1.05, 1.4, 1.2, 1.5, 1.1, 1.3, 1.0)  # p = 0.007
    assert word(Region(low=1), close) == HOLDS
    others = [made_up(f"other-{number}") for number in range(9)]
    wide = Measured((0.0, 2.0, -1.0, 3.0, 1.1))
    judged = judge([made_up(), *others], {"one": Measured(close), **{one.name: wide for one in others}})
    assert judged[0].verdict == OPEN
    assert "Holm" in judged[0].why


def test_what_is_not_measured_or_not_testable_says_so() -> None:
    judged = judge([made_up(), made_up("two", untestable="it needs a telescope")], {})
    assert [one.verdict for one in judged] == [MISSING, UNTESTABLE]
    assert judged[1].why == "it needs a telescope"


def test_a_region_needs_an_end() -> None:
    with pytest.raises(ValueError, match="needs an end"):
        Region()


def test_exact_claims_hold() -> None:
    rows = {name: {0: run(0, Setting({}))} for name, run in (("bias", bias), ("coupling", coupling))}
    wanted = [claim for claim in EXACT if claim.name.startswith(("bias", "coupling"))]
    judged = judge(wanted, {claim.name: claim.measure(Evidence(rows)) for claim in wanted})
    assert [one.verdict for one in judged] == [HOLDS] * 4


def test_steps_until_a_target() -> None:
    assert reached([0.1, 0.5, 0.4, 0.9], 0.45) == (20, True)
    assert reached([0.1, 0.2], 0.45) == (20, False)
    assert times_fewer({"none": [0.1, 0.2, 0.6, 0.3], "bn": [0.7]}, "bn") == 3
    assert times_fewer({"none": [0.1, 0.6], "bn": [0.2] * 4}, "bn") == 0.5


def test_measuring_resumes_and_measures_again_what_changed(tmp_path: Path) -> None:
    seen: list[int] = []

    def run(seed: int, setting: Setting) -> dict[str, float]:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(seed)
        return {"value": float(seed)}

    run.__module__ = bias.__module__
    experiment, rows = Experiment("made_up", 3, run, ("bn",)), Rows(tmp_path)
    setting = Setting({"bn": 0.1})
    with pytest.raises(KeyboardInterrupt):
        command.measure((experiment,), setting, rows)
    with rows.path.open("ab") as file:
        file.write(b'{"key": {"exp')  # a process that was killed while it wrote
    assert [row["values"]["value"] for row in rows.all()] == [0.0, 1.0]
    seen.clear()
    command.measure((experiment,), setting, rows)
    assert seen == [2]
    assert len(rows.all()) == 3
    seen.clear()
    command.measure((replace(experiment, seeds=1),), Setting({"bn": 0.2}), rows)
    assert seen == [0]
    rows.path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1"):
        rows.all()


def test_the_pages_name_every_claim_without_any_row(tmp_path: Path) -> None:
    judged = judge(CLAIMS, {})
    page = write_pages(tmp_path, judged, [], Evidence({}), quick=False).read_text()
    readme = (tmp_path / "README.md").read_text()
    for claim in CLAIMS:
        assert f'<article id="{claim.name}">' in page
        assert f"index.html#{claim.name})" in readme
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_a_page_shows_measurements_and_escapes(tmp_path: Path) -> None:
    first = replace(CLAIMS[0], text="A claim <b> & more")
    measured = {first.name: Measured((1e-15, 2e-15), "exact"), CLAIMS[1].name: Measured((1.0,), "exact")}
    judged = judge([first, *CLAIMS[1:]], measured)
    page = write_pages(tmp_path, judged, [], Evidence({}), quick=True).read_text()
    assert "A claim &lt;b&gt; &amp; more" in page
    assert "2e-15" in page
    assert 'aria-label="What was measured of: A claim &lt;b&gt; &amp; more"' in page
    assert "two seeds, which resolve nothing" in page


def test_the_page_of_all_studies_leads_to_it(tmp_path: Path) -> None:
    write_pages(tmp_path / "claims", judge(CLAIMS, {}), [], Evidence({}), quick=False)
    index = index_page(tmp_path, [])
    assert '<a href="claims/index.html">claims</a>' in index
    assert "What is claimed of batch norm" in index


def test_experiments_have_names_of_their_own() -> None:
    assert len({experiment.name for experiment in EXPERIMENTS}) == len(EXPERIMENTS)


def test_an_unknown_option_is_one_sentence() -> None:
    with pytest.raises(UserError, match="--quick"):
        command.main(["--quik"])
