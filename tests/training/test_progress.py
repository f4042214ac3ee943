"""How far a run is, while it trains."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from syncnorm.config import Clients, Data, Devices, Domains, Execution, Optim, Progress, Run, silent
from syncnorm.progress import Pace, line_on, words
from syncnorm.worlds import fit, forget

DEVICES = Run(
    data=Data("digits", train_limit=96, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8),
    optim=Optim(epochs=3),
)
DOMAINS = replace(DEVICES, data=Data("few", train_limit=48, test_limit=40), world=Domains(("digits", "digits-noisy")))
CLIENTS = replace(DEVICES, world=Clients(count=3, rounds=3))


@pytest.mark.parametrize("run", [DEVICES, DOMAINS, CLIENTS], ids=["devices", "domains", "clients"])
def test_each_epoch_and_round_is_told_and_changes_nothing(run: Run) -> None:
    heard: list[Progress] = []
    result = fit(run, Execution(report=heard.append))
    forget()
    assert result.metrics == fit(run).metrics
    ends = [one for one in heard if one.metrics]
    assert [one.metrics["train_loss"] for one in ends] == [one.loss for one in ends] == result.history["train_loss"]
    assert [(one.done, one.total, one.unit) for one in ends] == [(n, 3, run.world.step) for n in (1, 2, 3)]
    assert [one.fraction for one in ends] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(one.steps_per_second > 0 for one in ends)
    assert ends[-1].seconds_left == 0.0


def test_what_a_checkpoint_holds_is_not_told_again(tmp_path: Path) -> None:
    class Cut(Exception):
        pass

    def cut(progress: Progress) -> None:
        if progress.done == 2:
            raise Cut

    with pytest.raises(Cut):
        fit(DEVICES, Execution(tmp_path, checkpoint_every=0.0, report=cut))
    heard: list[Progress] = []
    fit(DEVICES, Execution(tmp_path, checkpoint_every=0.0, report=heard.append))
    assert [one.done for one in heard if one.metrics] == [3]


def test_between_epochs_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("syncnorm.progress.time.monotonic", lambda: now)
    heard: list[Progress] = []
    pace = Pace(Execution(report=heard.append), "epoch", 10, steps=100, begin=100)
    for step in range(101, 301):
        now += 0.125
        if pace.due():
            pace.tell(step, 1.0)
    assert len(heard) == 50
    last = heard[-1]
    assert last.steps_per_second == pytest.approx(8.0)
    assert last.seconds_left == pytest.approx((1000 - last.fraction * 1000) / 8.0)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_one_line() -> None:
    stream = Terminal()
    show = line_on(stream)
    show(Progress(2, 10, "epoch", 0.25, 120.0, 0.3104, 80.2))
    show(Progress(10, 10, "epoch", 1.0, 120.0, 0.1, 0.0))
    first, second = stream.getvalue().split("\r")[1:]
    assert first == "epoch 3/10, 120 steps/s, loss 0.31, 1 min 20 s left"
    assert second == f"{'epoch 10/10, 120 steps/s, loss 0.1, 0 s left'.ljust(len(first))}\n"


def test_elsewhere_there_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    assert line_on(io.StringIO()) is silent
    fit(DEVICES)
    assert capfd.readouterr().err == ""


def test_numbers_that_are_not_finite_have_words() -> None:
    assert words(Progress(0, 2, "round", 0.0, 1.0, float("nan"), float("inf"))) == "round 1/2, 1 rounds/s, loss nan"
