"""A run over Flower that is interrupted goes on to the same bits: its clients get back what they keep."""

from pathlib import Path
from typing import Any

import pytest
from small_runs import small_run

from syncnorm.config import Execution, Optim, Progress, Result, Run
from syncnorm.federated import CohortGrid, client_app, simulate
from syncnorm.federated.flower.apps import forget, play
from syncnorm.federated.flower.wire import run_as_text

MOMENTUM = Optim(lr=0.05, momentum=0.9, schedule="cosine", warmup=0.0)
UNEVEN: dict[str, Any] = {"count": 5, "rounds": 4, "participation": 0.6}
"""Clients of which some have not trained when the run is cut off."""


class Cut(Exception):
    """The end of a process."""


def over_flower(run: Run, execution: Execution) -> Result:
    """Play a run on a fresh grid, whose clients keep nothing yet."""
    forget()
    grid = CohortGrid(client_app, UNEVEN["count"], engine="loop")
    return play(grid, run_as_text(run), execution=execution)


@pytest.mark.parametrize(
    "run",
    [
        small_run(method="fedbn", unsampled="average", **UNEVEN),
        small_run(method="silobn", algorithm="scaffold", **UNEVEN),
        small_run(method="fedavg", keep_momentum=True, optim=MOMENTUM, **UNEVEN),
    ],
    ids=["norms", "controls", "momentum"],
)
def test_a_run_that_is_cut_off_goes_on_to_the_same_numbers(run: Run, tmp_path: Path) -> None:
    heard: list[int] = []

    def cut(progress: Progress) -> None:
        heard.append(progress.done)
        if heard == [1, 2, 3]:  # the third round is not saved
            raise Cut

    with pytest.raises(Cut):
        over_flower(run, Execution(tmp_path, 0.0, report=cut))
    found = over_flower(run, Execution(tmp_path, 0.0, report=cut))
    assert heard == [1, 2, 3, 3, 4]
    expected = simulate(run)
    assert found.metrics == expected.metrics
    assert found.history == expected.history
    assert "lost_states" not in found.details
