"""What is safe is fixed in a copy: outputs stay, the model stays, and a second call finds nothing more to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from healthy import batch, trained
from safetensors.torch import load_file
from torch import Tensor, nn

import syncnorm
from syncnorm import cli
from syncnorm.doctor import Fixed, diagnose, fix
from syncnorm.doctor.case import Case

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


class Biased(nn.Module):
    """Biases before a batch norm in 2-D and 1-D and an instance norm, and one that counts."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.norm = nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8, track_running_stats=True)
        self.fc, self.bn1 = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv2(self.bn(self.conv(x)).relu()))
        return self.out(self.bn1(self.fc(x.relu().mean((2, 3)))).relu())


def biased() -> nn.Module:
    net = Biased()
    for _ in range(3):
        net(batch(16))
    return net


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [Case(model).copy().train(training)(x) for training in (False, True)]


def fixed_once(model: nn.Module, *inputs: Any, **told: Any) -> Fixed:
    """Fix a model; it does not change, and the copy needs no second fix."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    found = fix(model, *inputs, **told)
    for name, value in model.state_dict().items():
        assert torch.equal(value.nan_to_num(), before[name].nan_to_num()), name
    assert modes == [module.training for module in model.modules()]
    again = fix(found.model, *inputs, **told)
    assert not again.done, str(again)
    return found


def test_dead_biases_are_dropped_and_outputs_stay() -> None:
    net, x = biased(), batch(16)
    found = fixed_once(net, x)
    assert {layer for one in found.done for layer in one.layers} == {"conv", "conv2", "fc"}
    assert found.model.conv.bias is None  # type: ignore[union-attr]
    assert found.model.out.bias is not None  # type: ignore[union-attr]
    assert not found.left.of("dead_bias")
    for one, other in zip(outputs(net, x), outputs(found.model, x), strict=True):
        assert (one - other).abs().max() <= 1e-5 * one.abs().max()
    assert all(one.change is not None and one.change <= 1e-5 for one in found.done)
    expected = net.bn.running_mean - net.conv.bias  # type: ignore[operator]
    assert torch.allclose(found.model.bn.running_mean, expected)  # type: ignore[union-attr, arg-type]


def test_a_bias_whose_norm_serves_others_too_stays() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.bn = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.one(x)) + self.bn(self.two(x))

    net = Shared()
    net(batch(16))
    found = fix(net, batch(16))
    assert not found.done
    assert "not fixed: dead_bias: 'bn' also normalises other outputs" in " ".join(str(found).split())
    assert found.model.one.bias is not None  # type: ignore[union-attr]


def test_averaged_counters_become_whole_numbers() -> None:
    net = trained()
    net.bn._buffers["num_batches_tracked"] = torch.tensor(41.5)  # type: ignore[union-attr]
    found = fixed_once(net)
    (one,) = found.done
    assert (one.check, one.layers) == ("averaged_counter", ("bn",))
    counter = found.model.bn.num_batches_tracked  # type: ignore[union-attr]
    assert counter.dtype == torch.long
    assert counter == 42
    x = batch(8)
    assert all(torch.equal(*pair) for pair in zip(outputs(net, x), outputs(found.model, x), strict=True))


def test_a_part_left_in_training_goes_into_evaluation() -> None:
    net = trained()
    net.layer1.bn1.train()  # type: ignore[union-attr]
    found = fixed_once(net, SHAPE)
    assert [one.check for one in found.done] == ["left_in_training"]
    assert not any(module.training for module in found.model.modules())


def test_norms_that_see_too_little_on_a_device_are_synchronised() -> None:
    net, x = trained(), batch(16)
    found = fixed_once(net, x, batch_size=2, world_size=4)
    (one,) = found.done
    assert one.check == "per_device_statistics"
    assert set(one.layers) == set(syncnorm.batch_norms(net))
    assert all(isinstance(norm, syncnorm.SyncBatchNorm) for norm in syncnorm.batch_norms(found.model).values())
    assert all(torch.equal(*pair) for pair in zip(outputs(net, x), outputs(found.model, x), strict=True))
    assert one.change == 0.0
    assert "outputs are equal" in str(one)
    assert not found.left.wrong


@pytest.mark.parametrize("spoil", ["weights", "nan", "reset"])
def test_statistics_are_those_of_the_data_given(spoil: str) -> None:
    net, x = trained(), batch(128)
    with torch.no_grad():
        if spoil == "weights":
            for p in net.parameters():
                p.mul_(2.5).add_(0.05)
        elif spoil == "nan":
            net.bn.running_mean[0] = float("nan")  # type: ignore[union-attr, index]
        else:
            net.layer1.bn1.reset_running_stats()  # type: ignore[union-attr]
    found = fixed_once(net, x, batches=x.split(32))
    assert len(found.done) == 1
    assert not found.left.wrong
    expected = syncnorm.recalibrate(Case(net).copy(), x.split(32))
    for name, value in expected.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name
    assert not fix(net, x).done, "without data, nothing is recalibrated"


def test_a_healthy_model_and_two_faults_at_once() -> None:
    assert str(fixed_once(trained(), SHAPE)).startswith("nothing to fix")
    net = biased().eval()
    net.bn.train()  # type: ignore[union-attr]
    net.bn1._buffers["num_batches_tracked"] = torch.tensor(2.5)  # type: ignore[union-attr]
    found = fixed_once(net, batch(16))
    assert [one.check for one in found.done] == ["averaged_counter", "left_in_training", *3 * ["dead_bias"]]


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(576, 5))
"""
Doctor = Callable[..., int]


@pytest.fixture
def doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "to_fix.py").write_text(MODULE)

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["syncnorm", "doctor", *arguments])
        return cli.main()

    return run


def test_the_command_writes_the_weights_of_the_copy(doctor: Doctor, capsys: Any) -> None:
    names: dict[str, Any] = {}
    exec(MODULE, names)
    net, x = names["build"](), batch(64) + 3
    net(x)
    torch.save(net.state_dict(), "weights.pt")
    torch.save(x, "batch.pt")
    before = Path("weights.pt").read_bytes()
    command = ("to_fix.py:build", "--checkpoint", "weights.pt", "--input", "batch.pt", "--fix")
    assert doctor(*command, "fixed.safetensors") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "misfitting_statistics: set all running statistics to those of the batches" in said
    assert "dead_bias: dropped its bias ('0'); outputs are" in said
    state = load_file("fixed.safetensors")
    assert "0.bias" not in state
    twin = names["build"]()
    twin[0] = nn.Conv2d(3, 16, 3, bias=False)
    twin.load_state_dict(state)
    assert not diagnose(twin, x)
    assert Path("weights.pt").read_bytes() == before
    assert doctor(*command, "weights.pt") == 2
    assert "is the file that was read" in capsys.readouterr().err
    assert Path("weights.pt").read_bytes() == before


def test_the_command_on_a_checkpoint_alone(doctor: Doctor, capsys: Any) -> None:
    state = trained().state_dict()
    state["bn.num_batches_tracked"] = torch.tensor(41.5)
    torch.save({"state_dict": state}, "weights.pt")
    assert doctor("weights.pt", "--fix", "fixed.pt") == 0
    assert "fixed.pt: 1 fixed" in capsys.readouterr().out
    fixed = torch.load("fixed.pt", weights_only=True)
    assert fixed.keys() == state.keys()
    assert fixed["bn.num_batches_tracked"] == 42
    assert all(torch.equal(fixed[name], state[name]) for name in state if name != "bn.num_batches_tracked")
    assert doctor("fixed.pt", "--fix", "again.pt") == 0
    assert "again.pt is not written: nothing to fix" in capsys.readouterr().out
    assert not Path("again.pt").exists()
