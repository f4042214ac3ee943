"""A training that was cut short goes on from its checkpoint to the same bits, whatever its norm keeps."""

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from syncnorm import norm_names
from syncnorm.config import Data, Devices, Domains, Execution, Norm, Optim, Progress, Run
from syncnorm.devices import training as devices_training
from syncnorm.domains import world as domains_world
from syncnorm.training.checkpoints import Checkpoints, load_module_state, module_state
from syncnorm.training.lightning.classifier import Classifier
from syncnorm.worlds import fit, forget

OPTIONS: dict[str, dict[str, Any]] = {
    "brn": {"warmup": 2, "r_end": 6, "d_end": 6},
    "mabn": {"buffer": 3, "warmup": 2, "renorm_after": 4},
    "cbn": {"window": 3},
    "ghost_bn": {"virtual_ranks": 2},
}
DEVICES = Run(
    data=Data("digits", train_limit=96, test_limit=60, augment="shift"),
    model_options={"width": 4},
    world=Devices(ranks=2, per_device_batch=8),
    optim=Optim(epochs=3),
)
DOMAINS = replace(
    DEVICES,
    data=Data("few", train_limit=48, test_limit=40),
    world=Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16, test_batch=20),
)
STEPS = 6
"""In an epoch, in both worlds."""


class Cut(Exception):
    """Ends a training in the middle."""


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return the list to which every training that ends adds the state that its modules end with."""
    states: list[Any] = []
    for world in (devices_training, domains_world):

        def run_trainer(*args: Any, inner: Any = world.run_trainer, **options: Any) -> None:
            inner(*args, **options)
            states.append(module_state(args[1]))

        monkeypatch.setattr(world, "run_trainer", run_trainer)
    return states


def cut_at(step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let the step of that number raise once; return the list of the steps that are taken."""
    taken: list[int] = []
    inner = Classifier.training_step

    def training_step(self: Classifier, batch: Any, batch_idx: int) -> Any:
        if len(taken) == step:
            monkeypatch.setattr(Classifier, "training_step", counted)
            raise Cut
        return counted(self, batch, batch_idx)

    def counted(self: Classifier, batch: Any, batch_idx: int) -> Any:
        taken.append(batch_idx)
        return inner(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", training_step)
    return taken


def same(a: Any, b: Any) -> bool:
    """Return whether two states are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def check(run: Run, step: int, folder: Path, ends: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut a run at a step, let it go on, and compare it with one that was not cut."""
    forget()
    whole = fit(run)
    forget()
    taken = cut_at(step, monkeypatch)
    execution = Execution(folder, checkpoint_every=0.0)
    with pytest.raises(Cut):
        fit(run, execution)
    assert len(taken) == step
    resumed = fit(run, execution)
    assert taken[step:] == [number % STEPS for number in range(step, STEPS * run.optim.epochs)], "no step twice"
    assert same(ends[1], ends[0])
    assert resumed.metrics == whole.metrics
    assert resumed.history == whole.history


@pytest.mark.parametrize("norm", sorted(set(norm_names()) - {"domain_bn"}))
def test_every_norm_goes_on_to_the_same_bits(
    norm: str, tmp_path: Path, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(DEVICES, norm=Norm(norm, OPTIONS.get(norm, {})))
    check(run, 9, tmp_path, ends, monkeypatch)


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 1, 3 * STEPS - 1])
def test_any_step_of_an_epoch_will_do(
    step: int, tmp_path: Path, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = Optim("adamw", lr=0.01, epochs=3)
    check(replace(DEVICES, optim=optim, precision="float64"), step, tmp_path, ends, monkeypatch)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_so_does_a_run_in_a_short_precision(
    precision: Any, tmp_path: Path, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(replace(DEVICES, precision=precision), STEPS + 1, tmp_path, ends, monkeypatch)


@pytest.mark.parametrize("norm", ["bn", "domain_bn", "mixstyle"])
@pytest.mark.parametrize("batches", ["mixed", "one_domain"])
def test_domains_go_on_to_the_same_bits(
    norm: str, batches: Any, tmp_path: Path, ends: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(DOMAINS.world, Domains)
    run = replace(DOMAINS, norm=Norm(norm), world=replace(DOMAINS.world, batches=batches))
    check(run, 9, tmp_path, ends, monkeypatch)


def test_an_interrupt_stays_an_interrupt(tmp_path: Path) -> None:
    heard = signal.getsignal(signal.SIGINT)

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(DEVICES, Execution(tmp_path, checkpoint_every=0.0, report=interrupt))
    assert signal.getsignal(signal.SIGINT) is heard
    assert fit(DEVICES, Execution(tmp_path)).metrics == fit(DEVICES).metrics


def test_nothing_is_saved_before_its_time(tmp_path: Path) -> None:
    fit(DEVICES, Execution(tmp_path / "checkpoint", checkpoint_every=1000.0))
    assert not (tmp_path / "checkpoint").exists()


def test_a_checkpoint_of_another_run_is_left_alone_with_a_sentence(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "another").write({"epoch": 1, "step": 0})
    with pytest.warns(UserWarning, match="holds a checkpoint of another run than"):
        result = fit(DEVICES, Execution(tmp_path, checkpoint_every=1000.0))
    assert result.metrics == fit(DEVICES).metrics


def test_a_folder_that_cannot_be_written_is_a_warning_and_no_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot write a checkpoint to"):
        result = fit(DEVICES, Execution(tmp_path / "file", checkpoint_every=0.0))
    assert result.metrics == fit(DEVICES).metrics


@pytest.mark.parametrize("left", [0, 1, 100, 0.5, 0.999])
def test_a_torn_newest_file_falls_back_to_the_one_before(left: float, tmp_path: Path) -> None:
    files = Checkpoints(tmp_path, "run")
    for number in range(3):
        files.write({"number": number, "tensor": torch.ones(1000)})
    assert [state["number"] for state in files.read()] == [2, 1]
    newest = tmp_path / "newest.pt"
    content = newest.read_bytes()
    newest.write_bytes(content[: int(left if left >= 1 else left * len(content))])
    assert [state["number"] for state in files.read()] == [1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest.pt", "previous.pt"]


def test_what_is_kept_beside_buffers_is_asked_for() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = 0
            self.register_buffer("seen", None)
            self.register_buffer("hidden", torch.zeros(2), persistent=False)

        def get_extra_state(self) -> int:
            return self.count

        def set_extra_state(self, state: int) -> None:
            self.count = state

    model, fresh = nn.Sequential(Counting()), nn.Sequential(Counting())
    model[0].count, model[0].seen, model[0].hidden = 3, torch.ones(2), torch.ones(2)
    load_module_state(fresh, module_state(model))
    assert fresh[0].count == 3
    assert torch.equal(fresh[0].seen, torch.ones(2))
    assert torch.equal(fresh[0].hidden, torch.ones(2))
