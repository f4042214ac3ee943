"""The server's arithmetic: every policy, against references written out in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm import SyncBatchNorm
from syncnorm.errors import UserError
from syncnorm.federated import POLICIES, aggregate, rules, shared_bytes

State = dict[str, Tensor]
WEIGHTS = [10.0, 30.0, 60.0]


class Net(nn.Module):
    """Names that say nothing of batch norm, a shared layer, a synchronised one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.twice = self.stem[1]
        self.downsample = nn.Sequential(nn.Conv2d(4, 4, 1), SyncBatchNorm(4))
        self.head = nn.Linear(4, 2)


def clients(model: nn.Module, count: int = 3) -> list[State]:
    """Return states with random values; variances positive, counters different."""
    generator = torch.Generator().manual_seed(0)
    states = []
    for client in range(count):
        state = {}
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                state[name] = torch.rand(value.shape, generator=generator) + 0.5
            else:
                state[name] = torch.tensor(7 * client + 1)
        for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            state[f"twice.{part}"] = state[f"stem.1.{part}"]
        states.append(state)
    return states


def mean_of(states: list[State], name: str) -> Tensor:
    shares = torch.tensor(WEIGHTS, dtype=torch.float64) / sum(WEIGHTS)
    return sum(share * state[name].double() for share, state in zip(shares, states, strict=True)).float()


@pytest.mark.parametrize("policy", POLICIES)
def test_every_entry_follows_its_row(policy: str) -> None:
    model, row = Net(), POLICIES[policy]
    states = clients(model)
    combined = aggregate(model, states, WEIGHTS, policy)
    own = model.state_dict()
    assert combined.keys() == own.keys()
    for name, value in combined.items():
        assert value.dtype == own[name].dtype
        assert value.shape == own[name].shape
        place, _, part = name.rpartition(".")
        owner = row.rest if place in ("stem.0", "downsample.0", "head") else row.affine
        if place in ("stem.1", "twice", "downsample.1") and part not in ("weight", "bias"):
            owner = "shared" if row.statistics != "local" and row.statistics_source != "after" else "local"
        if owner != "shared":
            assert torch.equal(value, own[name]), name
        elif part == "num_batches_tracked":
            assert value == 15
        elif part != "running_var" or row.statistics != "pooled":
            torch.testing.assert_close(value, mean_of(states, name), rtol=1e-6, atol=1e-7)
        else:
            mu = mean_of(states, f"{place}.running_mean").double()
            spread = [{"x": s[name].double() + (s[f"{place}.running_mean"].double() - mu) ** 2} for s in states]
            torch.testing.assert_close(value, mean_of(spread, "x"), rtol=1e-6, atol=1e-7)


def test_two_clients_far_apart() -> None:
    """N(3, 1) and N(-3, 1) together have variance 10; the plain average says 1."""
    model = nn.BatchNorm1d(1)
    states = [{**model.state_dict(), "running_mean": torch.tensor([mean])} for mean in (3.0, -3.0)]
    assert aggregate(model, states, [1, 1], "fedavg")["running_var"] == 1
    pooled = aggregate(model, states, [1, 1], "fedavg_pooled")
    assert pooled["running_var"] == 10
    assert pooled["running_mean"] == 0


def test_what_is_finite_apart_must_be_finite_together() -> None:
    model = nn.BatchNorm1d(2)
    far = [{**model.state_dict(), "running_mean": torch.tensor([0.0, mean])} for mean in (1e25, -1e25)]
    with pytest.raises(UserError, match=r"together 'running_var' is too large for torch\.float32"):
        aggregate(model, far, [1.0, 1.0], "fedavg_pooled")
    assert aggregate(model, far, [1.0, 1.0], "fedavg")["running_mean"].tolist() == [0.0, 0.0]


def test_pooled_statistics_are_those_of_the_union_of_the_samples() -> None:
    parts = [torch.randn(n, 2) * scale + shift for n, scale, shift in ((5, 1, 0), (50, 3, 4), (20, 0.1, -2))]
    model = nn.BatchNorm1d(2)
    states = [
        {**model.state_dict(), "running_mean": part.mean(0), "running_var": part.var(0, correction=0)}
        for part in parts
    ]
    combined = aggregate(model, states, [len(part) for part in parts], "fedavg_pooled")
    whole = torch.cat(parts)
    torch.testing.assert_close(combined["running_mean"], whole.mean(0))
    torch.testing.assert_close(combined["running_var"], whole.var(0, correction=0))


def test_one_client_is_itself_and_nobody_else_is_touched() -> None:
    model = Net()
    (state,) = clients(model, 1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    combined = aggregate(model, [state], [3])
    assert all(torch.equal(value, state[name]) for name, value in combined.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_stays_at_home_need_not_be_sent() -> None:
    model = Net()
    kinds = rules(model, "fedbn")
    states = [{name: value for name, value in state.items() if kinds[name] != "local"} for state in clients(model)]
    assert len(states[0]) == 6
    combined = aggregate(model, states, WEIGHTS, "fedbn")
    model.load_state_dict(combined)
    full = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert shared_bytes(model, "fedavg") == full
    assert shared_bytes(model, "fedbn") == sum(value.numel() * value.element_size() for value in states[0].values())


def change(state: State, **entries: Any) -> State:
    return {**state, **{name.replace("__", "."): value for name, value in entries.items()}}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda s: change(s, head__bias=torch.tensor([0.0, torch.nan])), "client 1 sent 'head.bias' with values"),
        (lambda s: change(s, stem__1__running_var=-torch.ones(4)), "'stem.1.running_var' with a negative variance"),
        (lambda s: change(s, head__bias=torch.zeros(3)), "'head.bias' as torch.float32 of shape (3,)"),
        (lambda s: change(s, head__bias=torch.zeros(2).double()), "'head.bias' as torch.float64"),
        (lambda s: change(s, head__bias=torch.zeros(2).long()), "'head.bias' as torch.int64"),
        (lambda s: change(s, head__bias=torch.zeros(2).cfloat()), "'head.bias' as torch.complex64"),
        (lambda s: change(s, head__bias="zeros"), "client 1 sent 'head.bias' as str: it must be a tensor"),
        (lambda s: change(s, head__bias=np.zeros(2)), "client 1 sent 'head.bias' as ndarray: it must be a tensor"),
        (lambda s: change(s, more=torch.zeros(2)), "'more', which the global model does not have"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("head")}, "sent no 'head.bias' (2 entries"),
    ],
)
def test_what_is_not_fit_is_refused_and_names_the_client(spoil: Any, sentence: str) -> None:
    model = Net()
    states = clients(model)
    states[1] = spoil(states[1])
    with pytest.raises(ValueError) as caught:
        aggregate(model, states, WEIGHTS)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"states": []}, "give at least one"),
        ({"weights": [1.0]}, "3 states came with 1 weights"),
        ({"weights": [0.0, 0.0, 0.0]}, "not all zero"),
        ({"weights": [1.0, -1.0, 1.0]}, "must not be negative"),
        ({"policy": "fedbnn"}, "unknown federated policy 'fedbnn': did you mean 'fedbn'?"),
    ],
)
def test_mistakes_get_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    model = Net()
    with pytest.raises(UserError) as caught:
        aggregate(**{"model": model, "states": clients(model), "weights": WEIGHTS, **arguments})
    assert sentence in str(caught.value)


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - {"fedavg", "local_only", "centralised"}))
def test_a_policy_without_meaning_for_the_model_is_refused(policy: str) -> None:
    with pytest.raises(UserError, match="the model has no batch norm"):
        rules(nn.Linear(2, 2), policy)


class Odd(nn.Module):
    """Entries that no mean of real numbers covers: complex and unsigned ones, a mask of infinities, a NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2)
        self.spectrum = nn.Parameter(torch.zeros(2, dtype=torch.cfloat))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
        self.register_buffer("unknown", torch.tensor([torch.nan]))
        for kind in (torch.uint16, torch.uint32, torch.uint64):
            self.register_buffer(str(kind).removeprefix("torch."), torch.zeros((), dtype=kind))


def test_complex_entries_are_averaged_and_unsigned_ones_take_the_maximum() -> None:
    model = Odd()
    states = [
        {**model.state_dict(), "spectrum": torch.tensor([1 + 2j, 3j]) * k,
         "uint16": torch.tensor(60_000 + k, dtype=torch.uint16),
         "uint64": torch.from_numpy(np.array(2**63 + k, dtype=np.uint64))}
        for k in (1, 2, 5)
    ]  # fmt: skip
    assert rules(model, "fedavg")["spectrum"] == "average"
    combined = aggregate(model, states, WEIGHTS)
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    expected = (shares * [1, 2, 5]).sum() * np.array([1 + 2j, 3j])
    assert combined["spectrum"].dtype == torch.cfloat
    np.testing.assert_allclose(combined["spectrum"].numpy(), expected, rtol=1e-6)
    assert combined["uint16"].dtype == torch.uint16
    assert [combined[name].numpy().item() for name in ("uint16", "uint32", "uint64")] == [60_005, 0, 2**63 + 5]


def test_values_may_be_infinite_where_the_global_model_is() -> None:
    model = Odd()
    combined = aggregate(model, [model.state_dict()] * 3, WEIGHTS)
    assert torch.equal(combined["mask"], torch.tensor([-torch.inf, 0.0]))
    assert combined["unknown"].isnan().all()
    broken = {**model.state_dict(), "mask": torch.tensor([-torch.inf, torch.inf])}
    with pytest.raises(ValueError, match="client 1 sent 'mask' with values that are not finite"):
        aggregate(model, [model.state_dict(), broken], [1, 1])


def test_another_precision_is_taken_where_asked_for_and_the_models_own_is_kept() -> None:
    model = nn.BatchNorm1d(2)
    half = {
        name: value.half() if value.is_floating_point() else value.int() for name, value in model.state_dict().items()
    }
    combined = aggregate(
        model, [half, {**half, "weight": torch.tensor([3.0, 5.0]).double()}], [1, 3], any_precision=True
    )
    assert {name: value.dtype for name, value in combined.items()} == {
        name: value.dtype for name, value in model.state_dict().items()
    }
    assert combined["weight"].tolist() == [2.5, 4.0]
    complex_ = {**half, "weight": torch.zeros(2).cfloat()}
    with pytest.raises(ValueError, match=r"client 0 sent 'weight' as torch.complex64"):
        aggregate(model, [complex_], [1], any_precision=True)
    far = {**half, "bias": torch.tensor([torch.inf, 0.0]).half()}
    with pytest.raises(ValueError, match="client 0 sent 'bias' with values that are not finite"):
        aggregate(model, [far], [1], any_precision=True)


def test_a_client_of_weight_zero_changes_nothing() -> None:
    model = Net()
    states = clients(model)
    for name in states[2]:
        states[2][name] = states[2][name] * 1000 + 1
    both, two = aggregate(model, states, [1, 3, 0]), aggregate(model, states[:2], [1, 3])
    assert all(torch.equal(both[name], two[name]) for name in two)
