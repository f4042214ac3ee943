"""Nothing is found in healthy models; each planted fault is found, at its layer; the model stays as it is."""

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from faults import FAULTS, OverTheBatch
from healthy import HEALTHY, Net, batch
from torch import Tensor, nn

from syncnorm.doctor import CHECKS, Finding, diagnose, register_check
from syncnorm.errors import UserError

SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found_in_a_healthy_model(name: str) -> None:
    found = diagnose(HEALTHY[name](), SHAPE, batch_size=32, world_size=8, accumulate=2)
    assert found == []
    assert not found.wrong
    assert "nothing found" in str(found)
    assert {"few_values", "per_device_statistics", "accumulated_statistics", "dead_bias"} <= set(found.checked)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    fault = FAULTS[name]
    told = fault.told if fault.healthy is None else fault.healthy
    healthy = diagnose(fault.base(), fault.shape, **told)
    assert not healthy.of(fault.check)
    found = diagnose(fault.model(), fault.shape, **fault.told)
    assert fault.layer in [finding.layer for finding in found.of(fault.check)], str(found)
    others = {finding.check for finding in found if finding.severity != "note"}
    assert others <= {fault.check, *fault.also}
    for finding in found.of(fault.check):
        assert finding.what
        assert finding.remedy
        assert finding.what not in str(healthy)


def test_every_check_has_a_planted_fault() -> None:
    elsewhere = {"decayed", "not_optimised"}
    assert {fault.check for fault in FAULTS.values()} | elsewhere == set(CHECKS)


PAIRS = list(
    pairwise(
        name for name, fault in FAULTS.items() if fault.base is Net and fault.shape is not None and not fault.told
    )
)


@pytest.mark.parametrize(("one", "other"), PAIRS[::3])
def test_two_faults_are_both_found(one: str, other: str) -> None:
    first, second = FAULTS[one], FAULTS[other]
    net = first.model()
    if any(layer.startswith(second.layer) for layer in (first.layer,)):
        net = nn.Sequential(net, nn.Unflatten(1, (5, 1, 1)), nn.Upsample(8), nn.Conv2d(5, 3, 1), second.model())
        net.training = net[0].training
        prefix = "4."
    else:
        second.plant(net)
        prefix = ""
    found = diagnose(net, SHAPE)
    assert found.of(first.check)
    assert any(finding.layer.removeprefix(prefix) == second.layer for finding in found.of(second.check))


@pytest.mark.parametrize("broken", ["NaN", "infinite", "negative variance"])
def test_broken_statistics_hide_no_other_fault(broken: str) -> None:
    net = FAULTS[broken].model()
    other = FAULTS["a norm by hand"]
    net.set_submodule("layer2.bn1", OverTheBatch(16))
    found = diagnose(net, SHAPE)
    assert found.of(FAULTS[broken].check)
    assert [finding.layer for finding in found.of(other.check)] == ["layer2.bn1"]


def everything(model: nn.Module) -> list[Any]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    learnt = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    chance = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1]]
    return [state, modes, learnt, hooks, chance, torch.is_grad_enabled()]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor | np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other)


def test_the_model_and_the_process_stay_as_they_are() -> None:
    net = nn.Sequential(Net(), nn.Dropout(0.5)).train()
    net[0].layer1.eval()
    net[0].fc.weight.requires_grad_(False)
    net(batch(4)).sum().backward()
    tensors = [*net.parameters(), *net.buffers()]
    before = everything(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1)
    diagnose(net, SHAPE, batch_size=2, world_size=4, accumulate=2, optimizer=optimizer, policy="fedbn", deploy=True)
    assert equal(before, everything(net))
    assert all(one is other for one, other in zip(tensors, [*net.parameters(), *net.buffers()], strict=True))


NORM = nn.BatchNorm2d(3)


class Global(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return NORM(x)


def test_a_norm_in_a_global_variable_is_found_and_stays_as_it_is() -> None:
    before = {name: value.clone() for name, value in NORM.state_dict().items()}
    found = diagnose(Global(), SHAPE)
    assert [finding.check for finding in found] == ["unlisted"]
    assert equal(before, NORM.state_dict())


def test_one_rank_of_several_does_not_run_a_synchronised_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    net = Net()
    net.bn = nn.SyncBatchNorm(8, eps=0.5)  # type: ignore[assignment]
    found = diagnose(net, SHAPE, batch_size=2, world_size=2)
    assert [finding.check for finding in found] == ["odd_eps"]
    assert "one rank cannot run a synchronised norm alone" in found.skipped["few_values"]


def test_the_cost_of_per_device_statistics_is_that_of_virtual_ranks() -> None:
    """Against a plain loop over ranks, in float64."""
    torch.manual_seed(1)
    net, x = Net().double(), batch(8).double()
    (found, *_) = (f for f in diagnose(net, x, batch_size=2, world_size=4).of("per_device_statistics"))
    together = Net().double()
    together.load_state_dict(net.state_dict())
    with torch.no_grad():
        common = together.train()(x)
        apart = torch.stack([together(x[rank::4]) for rank in range(4)], 1).flatten(0, 1)
    share = ((apart - common).square().sum() / common.square().sum()).sqrt()
    assert f"differ by {100 * share:.0f} %" in found.cost
    conv = net.conv(x)
    means = torch.stack([conv[rank::4].mean((0, 2, 3)) for rank in range(4)])
    off = ((means - conv.mean((0, 2, 3))).square().mean(0) / conv.var((0, 2, 3), correction=0)).mean().sqrt()
    assert found.layer == "bn"
    assert f"are {off:.2f} standard deviations" in found.cost
    assert found.certainty == "measured"


def test_weight_decay_and_forgotten_parameters() -> None:
    net = Net()
    found = diagnose(net, optimizer=torch.optim.SGD(net.parameters(), 0.1, weight_decay=0.1))
    assert [finding.check for finding in found] == ["decayed"] * 6
    norms = [p for layer in net.modules() if isinstance(layer, nn.BatchNorm2d) for p in layer.parameters()]
    rest = [p for p in net.parameters() if all(p is not own for own in norms)]
    groups = [{"params": rest}, {"params": norms, "weight_decay": 0.0}]
    assert diagnose(net, optimizer=torch.optim.SGD(groups, 0.1, weight_decay=0.1)) == []
    assert [f.layer for f in diagnose(net, optimizer=torch.optim.SGD(rest, 0.1))] == [
        "bn", "layer1.bn1", "layer1.bn2", "layer2.bn1", "layer2.bn2", "layer2.down.1",
    ]  # fmt: skip
    assert diagnose(net, optimizer=torch.optim.SGD(net.fc.parameters(), 0.1)) == []


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"inputs": (3, 8)}, r"fails in evaluation on random input \(float32 \(4, 3, 8\)\) in layer 'conv'"),
        ({"inputs": torch.zeros(2, 4, 8, 8)}, r"your input .* in layer 'conv': RuntimeError: .*expected input"),
        ({"inputs": (3, 0, 8)}, "at least 1"),
        ({"inputs": "3x8x8"}, "the input is a str"),
        ({"inputs": torch.zeros(0, 3, 8, 8)}, "no samples"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"world_size": 1.5}, "world_size is 1.5"),
        ({"policy": "fedbm"}, "did you mean 'fedbn'"),
        ({"checks": ["few_value"]}, "did you mean 'few_values'"),
    ],
)
def test_a_mistake_gets_a_sentence(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        diagnose(Net(), **told)


def test_no_model_and_a_model_that_cannot_be_copied() -> None:
    with pytest.raises(UserError, match=r"give a torch\.nn\.Module"):
        diagnose(Net)  # type: ignore[arg-type]
    net = Net()
    net.kept = (net.conv.weight * 2,)  # type: ignore[assignment]
    with pytest.raises(UserError, match="runs on a copy, and Net cannot be copied"):
        diagnose(net, SHAPE)
    net.bn.eps = 0.5
    assert [finding.check for finding in diagnose(net)] == ["odd_eps"]


def test_inputs_by_name_in_order_and_of_whole_numbers() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.net, self.bn = nn.Embedding(9, 4), nn.Linear(2, 4), nn.BatchNorm1d(4)

        def forward(self, words: Tensor, also: Tensor) -> dict[str, Tensor]:
            return {"y": self.bn(self.words(words).mean(1) + self.net(also))}

    words, also = torch.randint(9, (8, 3)), torch.randn(8, 2)
    for inputs in ((words, also), [words, also], {"also": also, "words": words}):
        found = diagnose(Two(), inputs, batch_size=4)
        assert [finding.check for finding in found] == ["few_values"]


@pytest.mark.usefixtures("registries")
def test_a_check_of_ones_own() -> None:
    @register_check("wide")
    def wide(case: Any) -> Any:
        """A batch norm of many channels."""
        for name, layer in case.batch_norms.items():
            if layer.num_features > 8:
                yield Finding(name, f"it has {layer.num_features} channels", "take fewer", "note")

    assert [finding.layer for finding in diagnose(Net(), checks=["wide"])] == [
        "layer2.bn1",
        "layer2.bn2",
        "layer2.down.1",
    ]

    @register_check("rude")
    def rude(case: Any) -> Any:
        """Change the model."""
        case.model.eval()
        return []

    with pytest.raises(UserError, match="check 'rude' has changed the model"):
        diagnose(Net())
    with pytest.raises(UserError, match="did you mean 'input'"):
        register_check("other", needs=("inputs",))  # type: ignore[arg-type]


def test_the_table_fits_80_columns_and_puts_equal_findings_together() -> None:
    text = str(diagnose(Net(), SHAPE, batch_size=2, world_size=4))
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith("Net: 6 warnings (")
    assert text.count("per_device_statistics") == 1
    assert "6 layers: 'bn', 'layer1.bn1', 'layer1.bn2' and 3 more" in text
