"""Aggregations against references in float64: NumPy, SciPy, and formulas written out."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import trim_mean
from torch import Tensor, nn

import syncnorm
from syncnorm.errors import UserError
from syncnorm.federated import AGGREGATIONS, Aggregation, Option, aggregate

Array = NDArray[Any]
State = dict[str, Tensor]
COUNTS = (1, 2, 3, 4, 5, 9, 12)


class Net(nn.Module):
    """A batch norm without such a name, a complex parameter, a mask of infinities, an unsigned number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3))
        self.spectrum = nn.Parameter(torch.zeros(2, dtype=torch.cdouble))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
        self.register_buffer("small", torch.zeros((), dtype=torch.uint16))
        self.double()


def clients(count: int, seed: int = 0) -> list[State]:
    """Return states of clients that differ in everything."""
    rng, model = np.random.default_rng(seed), Net()
    states = []
    for client in range(count):
        state = model.state_dict()
        for name, value in state.items():
            if name == "mask":
                continue
            if name == "small":
                state[name] = torch.tensor(60_000 + client, dtype=torch.uint16)
            elif name.endswith("num_batches_tracked"):
                state[name] = torch.tensor(int(rng.integers(0, 2**40)))
            elif value.is_complex():
                state[name] = torch.complex(*(torch.from_numpy(rng.normal(size=2)) for _ in range(2)))
            elif name.endswith("running_var"):
                state[name] = torch.from_numpy(rng.lognormal(sigma=2, size=value.shape))
            else:
                state[name] = torch.from_numpy(rng.normal(size=value.shape) * 3)
        states.append(state)
    return states


def stacked(states: list[State], name: str) -> Array:
    """Return an entry of all clients."""
    return np.stack([state[name].numpy() for state in states])


def near(found: Tensor, expected: Array) -> None:
    """Compare in float64, up to rounding."""
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-14)


def center_of(name: str) -> Any:
    """Return the reference of an aggregation's centre over the first dimension."""
    return {"median": lambda x: np.median(x, 0), "trimmed": lambda x: trim_mean(x, 0.34, 0)}[name]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["median", "trimmed"])
@pytest.mark.parametrize("policy", ["fedavg", "fedavg_pooled", "silobn"])
def test_median_and_trimmed_mean_of_every_entry(name: str, count: int, policy: str) -> None:
    model, states, center = Net(), clients(count), center_of(name)
    weights = list(range(1, count + 1))  # which play no part
    found = aggregate(model, states, weights, policy, aggregation=name)
    for entry in ("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias"):
        near(found[entry], center(stacked(states, entry)))
    spectrum = stacked(states, "spectrum")
    near(found["spectrum"].real, center(spectrum.real))
    near(found["spectrum"].imag, center(spectrum.imag))
    assert found["mask"].tolist() == [-torch.inf, 0.0]
    means, variances = stacked(states, "stem.1.running_mean"), stacked(states, "stem.1.running_var")
    if policy == "silobn":
        assert torch.equal(found["stem.1.running_mean"], model.state_dict()["stem.1.running_mean"])
    else:
        near(found["stem.1.running_mean"], center(means))
        spread = (means - center(means)) ** 2 if policy == "fedavg_pooled" else 0
        near(found["stem.1.running_var"], center(variances + spread))
        counters = sorted(state["stem.1.num_batches_tracked"].item() for state in states)
        cut = (count - 1) // 2 if name == "median" else int(0.34 * count)
        assert found["stem.1.num_batches_tracked"].item() == counters[count - 1 - cut]
    cut = (count - 1) // 2 if name == "median" else int(0.34 * count)
    assert int(found["small"]) == 60_000 + count - 1 - cut


def test_nothing_trimmed_and_equal_weights_are_the_pooled_mean() -> None:
    model, states = Net(), clients(5)
    plain = aggregate(model, states, [1.0] * 5, "fedavg_pooled")
    found = aggregate(model, states, [1.0] * 5, "fedavg_pooled", aggregation=AGGREGATIONS["trimmed"]({"trim": 0.0}))
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-13)


def clipped_by_hand(before: nn.Module, states: list[State], ratio: float, trim: float) -> dict[str, Array]:
    """Return clipped updates and statistics written out: norms of changes, variances and means by channel."""
    model = {name: value.numpy() for name, value in before.state_dict().items()}
    names = [name for name in model if "running" not in name and name not in ("mask", "small") and "num_" not in name]
    norms = [np.sqrt(sum((np.abs(state[n].numpy() - model[n]) ** 2).sum() for n in names)) for state in states]
    scale = [min(1.0, np.median(norms) / norm) for norm in norms]
    pairs = list(zip(scale, states, strict=True))
    found = {
        name: np.mean([model[name] + s * (state[name].numpy() - model[name]) for s, state in pairs], 0)
        for name in names
    }
    means, variances = stacked(states, "stem.1.running_mean"), stacked(states, "stem.1.running_var")
    usual = np.median(variances, 0)
    variances = np.minimum(np.maximum(variances, usual / ratio), usual * ratio)
    middle, reach = np.median(means, 0), np.sqrt(usual * (ratio - 1))
    means = np.minimum(np.maximum(means, middle - reach), middle + reach)
    found["stem.1.running_mean"] = mean = trim_mean(means, trim, 0)
    found["stem.1.running_var"] = trim_mean(variances + (means - mean) ** 2, trim, 0)
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("ratio", [1.0, 4.0, 1e6])
@pytest.mark.parametrize("trim", [0.0, 0.34])
def test_clipped_updates_and_statistics(count: int, ratio: float, trim: float) -> None:
    model, states, clipped = Net(), clients(count), AGGREGATIONS["clipped"]({"ratio": ratio, "trim": trim})
    expected = clipped_by_hand(model, states, ratio, trim)
    found = aggregate(model, states, [1.0] * count, "fedavg_pooled", aggregation=clipped)
    for name, value in expected.items():
        near(found[name], value)


def krum_by_hand(states: list[State], trim: float) -> list[int]:
    """Return the clients that Multi-Krum keeps, written out in NumPy."""
    names = [
        name for name in states[0] if "running" not in name and name not in ("mask", "small") and "num_" not in name
    ]
    flat = [np.concatenate([state[name].numpy().ravel() for name in names]) for state in states]
    count = len(states)
    left_out = int(trim * count + 1e-9)
    scores = []
    for k in range(count):
        others = sorted((np.abs(flat[k] - flat[j]) ** 2).sum() for j in range(count) if j != k)
        scores.append(sum(others[: max(1, count - left_out - 2)]))
    return sorted(np.argsort(scores, kind="stable")[: count - left_out].tolist())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("policy", ["fedavg", "fedavg_pooled"])
def test_krum_keeps_the_nearest_and_trims_all_statistics(count: int, policy: str) -> None:
    states = clients(count)
    found = aggregate(Net(), states, [1.0] * count, policy, aggregation="krum")
    kept = krum_by_hand(states, 0.34) if count > 1 else [0]
    assert len(kept) == count - int(0.34 * count)
    for entry in ("stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "spectrum"):
        near(found[entry], stacked([states[k] for k in kept], entry).mean(0))
    trimmed = aggregate(Net(), states, [1.0] * count, policy, aggregation="trimmed")
    for entry in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(found[f"stem.1.{entry}"], trimmed[f"stem.1.{entry}"])


def test_krum_leaves_out_who_points_elsewhere() -> None:
    """Eight clients around one change, four around its opposite; each coordinate by itself tells them badly apart."""
    rng, model = np.random.default_rng(0), nn.Linear(200, 1).double()
    start, step = model.weight.detach(), torch.from_numpy(rng.normal(size=(1, 200)))
    states = []
    for client in range(12):
        around = step + torch.from_numpy(rng.normal(size=(1, 200)))
        states.append({"weight": start + (around if client < 8 else -around), "bias": model.bias.detach()})
    honest = torch.stack([state["weight"] for state in states[:8]]).mean(0)
    apart = {
        name: (aggregate(model, states, [1.0] * 12, aggregation=name)["weight"] - honest).norm() / step.norm()
        for name in ("mean", "median", "krum")
    }
    assert apart["krum"] < 1e-12
    assert 0.2 < apart["median"] < apart["mean"]


def with_all(state: State, ending: str, number: float) -> State:
    """Return a state with one number in all real entries whose name ends so."""
    return {
        name: torch.full_like(value, number) if name.endswith(ending) and name != "mask" else value
        for name, value in state.items()
    }


FAR: dict[str, Any] = {
    "scaled": lambda s: {n: v * 1e6 if v.is_floating_point() and n != "mask" else v for n, v in s.items()},
    "huge": lambda s: with_all(s, "weight", 1e300),
    "mean": lambda s: with_all(s, "_mean", -1e30),
    "variance": lambda s: with_all(s, "_var", 1e30),
    "no variance": lambda s: with_all(s, "_var", 1e-30),
    "counter": lambda s: with_all(s, "tracked", 2**53),
}


@pytest.mark.parametrize("attack", FAR)
@pytest.mark.parametrize("name", ["median", "trimmed", "clipped", "krum"])
def test_a_third_of_the_clients_move_nothing_out_of_the_range_of_the_others(name: str, attack: str) -> None:
    honest, hostile = clients(6), [FAR[attack](state) for state in clients(3, seed=1)]
    found = aggregate(Net(), [*honest, *hostile], [1.0] * 9, "fedavg_pooled", aggregation=name)
    means, variances = (stacked(honest, f"stem.1.running_{part}") for part in ("mean", "var"))
    reach = 2 * np.sqrt(variances.max(0))  # of clipped means, with the ratio 4
    for entry, value in found.items():
        values = stacked(honest, entry)
        low, high = values.real.min(0), values.real.max(0)
        if entry.endswith("running_var"):  # of a pooled variance, the spread of the means is a part
            low, high = low / 4, 4 * high + (np.ptp(means, 0) + 2 * reach) ** 2
        elif name == "clipped" and (value.is_floating_point() or value.is_complex()):
            continue  # it bounds the size of a change, and not its place
        real = value.numpy().real
        assert (low <= real).all(), entry
        assert (real <= high).all(), entry
    assert not any(value.isnan().any() for value in found.values())
    assert found["stem.1.running_var"].isfinite().all()


def test_an_update_of_infinite_norm_changes_nothing() -> None:
    """Float64 values whose squares are no float64: the others' updates are averaged with none of theirs."""
    model, honest = Net(), clients(3)
    far = {n: torch.full_like(v, 1.7e308) if n.startswith("stem.0") else v for n, v in honest[0].items()}
    model.stem[0].weight.data.fill_(-1.7e308)
    states = [dict(state, **{"stem.0.weight": model.stem[0].weight.data}) for state in honest]
    found = aggregate(model, [*states, far], [1.0] * 4, "fedavg_pooled", aggregation="clipped")
    assert torch.equal(found["stem.0.weight"], model.stem[0].weight.data)


def test_clients_of_weight_zero_play_no_part() -> None:
    model, states = Net(), clients(4)
    for name in AGGREGATIONS:
        some = aggregate(model, states, [1, 0, 1, 1], "fedavg", aggregation=name)
        others = aggregate(model, [states[0], *states[2:]], [1, 1, 1], "fedavg", aggregation=name)
        assert all(torch.equal(some[entry], others[entry]) for entry in some)


@pytest.mark.usefixtures("registries")
def test_an_aggregation_of_ones_own() -> None:
    @syncnorm.register_aggregation("midpoint")
    class Midpoint(Aggregation):
        """The middle of the range."""

        OPTIONS: ClassVar = {"part": Option(0.5)}

        def center(self, values: Tensor, shares: Tensor) -> Tensor:
            return torch.lerp(values.amin(0), values.amax(0), self.options["part"])

    model, states = Net(), clients(5)
    found = aggregate(model, states, [1.0] * 5, "fedavg_pooled", aggregation="midpoint")
    values = stacked(states, "stem.0.weight")
    near(found["stem.0.weight"], (values.min(0) + values.max(0)) / 2)
    means, variances = stacked(states, "stem.1.running_mean"), stacked(states, "stem.1.running_var")
    mean = (means.min(0) + means.max(0)) / 2
    whole = variances + (means - mean) ** 2
    near(found["stem.1.running_var"], (whole.min(0) + whole.max(0)) / 2)


class Misspelt(Aggregation):
    """A hook that nobody would call."""

    def centre(self, values: Tensor) -> Tensor:
        return values[0]


class Bare(Aggregation):
    """An option without a range."""

    OPTIONS: ClassVar = {"trim": 0.2}


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: syncnorm.register_aggregation("mine")(Misspelt), "'centre': did you mean 'center'"),
        (lambda: syncnorm.register_aggregation("mine")(Bare), "option trim of aggregation 'mine' is 0.2: write Opti"),
        (lambda: syncnorm.register_aggregation("mine")(int), "make it a subclass of syncnorm.federated.Aggregation"),  # type: ignore[type-var]
        (lambda: syncnorm.register_aggregation("median")(Aggregation), "'median' is registered already, by syncnorm"),
        (lambda: syncnorm.register_aggregation(Misspelt), 'write @syncnorm.register_aggregation("misspelt")'),  # type: ignore[arg-type]
        (lambda: aggregate(Net(), clients(2), [1, 1], aggregation="medain"), "unknown aggregation 'medain': did you"),
        (
            lambda: AGGREGATIONS["trimmed"]({"trim": 0.7}),
            "option trim of the aggregation trimmed is 0.7: it must be from",
        ),
        (
            lambda: AGGREGATIONS["krum"]({"trum": 0.2}),
            "unknown option of the aggregation krum 'trum': did you mean 'tri",
        ),
        (lambda: aggregate(Net(), clients(2), [1, 1], aggregation=3), "unknown aggregation '3'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_get_a_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert sentence in str(caught.value)
