"""The batched engine against the plain one, its failures, and the choice between them. float64 throughout."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import ok, run_ranks
from torch import Tensor, nn

from syncnorm.config import Optim
from syncnorm.errors import UserError
from syncnorm.federated.algorithms.fedavg import FedAvg
from syncnorm.federated.algorithms.fedprox import FedProx
from syncnorm.federated.algorithms.fedtan import FedTAN
from syncnorm.federated.algorithms.scaffold import Scaffold
from syncnorm.federated.algorithms.together import Together
from syncnorm.federated.engines import cohort, engine, loop
from syncnorm.federated.local import Local, Task, Update
from syncnorm.models import MLP, SmallCNN, thin_resnet
from syncnorm.surgery import convert, revert
from syncnorm.training import Classifier

RAGGED = [3, 21, 6, 8, 13]
"""Samples a client: with batches of 4, those who make a step together are not always neighbours."""
BATCH = 4


@pytest.fixture(autouse=True)
def seeded_and_batched() -> Any:
    """Make a test fail whose cohort was trained by the plain engine unawares."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the clients could not train")
        yield


def cnn(channels: int = 2) -> nn.Module:
    return SmallCNN(channels, 3, width=4)


def initial(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in chain(model.named_parameters(), model.named_buffers())}


def make(
    model: nn.Module,
    sizes: Sequence[int] = RAGGED,
    *,
    epochs: int = 1,
    optim: Optim | None = None,
    state: Callable[[int], dict[str, Tensor]] | None = None,
    **local: Any,
) -> tuple[Local, Tensor, Tensor, list[Task]]:
    """Return the arguments of an engine: clients with so many samples of 8x8 noise, all from the same state."""
    torch.manual_seed(1)
    model = model.double()
    x, y = torch.randn(sum(sizes), 2, 8, 8, dtype=torch.float64), torch.randint(0, 3, (sum(sizes),))
    same = initial(model)
    tasks, first = [], 0
    for client, size in enumerate(sizes):
        batches = [b for _ in range(epochs) for b in (torch.randperm(size) + first).split(BATCH) if len(b) > 1]
        own = same if state is None else state(client)
        tasks.append(Task(10 + client, tuple(batches), (False,) * len(batches), own, seed=client))
        first += size
    return Local(Classifier(model), optim or Optim(), **local), x, y, tasks


def assert_same(got: Sequence[Update], expected: Sequence[Update], tolerance: float = 1e-12) -> None:
    assert [update.client for update in got] == [update.client for update in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.error == other.error == ""
        assert one.loss == pytest.approx(other.loss, rel=tolerance)
        assert (one.momentum is None) == (other.momentum is None)
        for mine, theirs in ((one.state, other.state), (one.momentum or {}, other.momentum or {})):
            assert set(mine) == set(theirs)
            for name, value in mine.items():
                assert value.dtype == theirs[name].dtype, name
                assert not value.requires_grad
                torch.testing.assert_close(value, theirs[name], rtol=tolerance, atol=tolerance, msg=name)


def assert_engines_agree(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
    got = cohort.train(local, x, y, tasks)
    assert_same(got, loop.train(local, x, y, tasks))
    return got


class Odd(nn.Module):
    """What models may have: strides, groups, dilation, 1d, a layer with two names, tied, fixed, unused weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular", bias=False)
        self.norm = self.another_name = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, stride=2, groups=3, dilation=2, padding=2)
        self.conv3 = nn.ConvTranspose2d(6, 6, 2)
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.batch_only = nn.BatchNorm1d(6, track_running_stats=False)
        self.long = nn.Conv1d(6, 5, 3, bias=False)
        self.norm1d = nn.BatchNorm1d(5, momentum=0.3)
        self.scale = nn.Parameter(torch.ones(5))
        self.left, self.right = nn.Linear(5, 5), nn.Linear(5, 5)
        self.right.weight = self.left.weight
        self.head = nn.Linear(5, 3)
        self.unused = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        x = self.norm(F.max_pool2d(F.relu(self.norm(self.conv1(x))), 3, stride=2, padding=1, ceil_mode=True))
        x, _ = F.max_pool2d(self.plain(self.conv3(self.conv2(x))), 2, return_indices=True, stride=1)
        x = self.norm1d(self.long(self.batch_only(x.flatten(2))))
        x = F.adaptive_avg_pool1d(x * self.scale[:, None] + self.fixed[:, None], 1).flatten(1)
        logits: Tensor = self.head(self.left(x).tanh() + self.right(x))
        return logits


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cnn": cnn,
    "mlp": lambda: MLP(128, 3, width=8),
    "resnet8": lambda: thin_resnet(2, 3, None, 8),
    "odd": Odd,
    "adaptive_pooling": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(8, 3)
    ),
    **{
        norm: lambda norm=norm: convert(cnn(), norm)
        for norm in ("gn", "none", "frozen_bn", "reference_bn", "hybrid_bn")
    },
    "scaled_ws": lambda: convert(cnn(), "scaled_ws"),
}


@pytest.mark.parametrize("model", MODELS)
def test_ragged_clients_end_where_they_do_alone(model: str) -> None:
    assert_engines_agree(*make(MODELS[model]()))


@pytest.mark.parametrize(
    "optim",
    [
        Optim(momentum=0.0),
        Optim(weight_decay=0.0),
        Optim("adam", lr=0.01, weight_decay=0.1),
        Optim("adamw", lr=0.01, weight_decay=0.1),
    ],
)
def test_optimisers(optim: Optim) -> None:
    # Without norms: in front of one, gradients that are zero but for rounding become steps of Adam.
    assert_engines_agree(*make(convert(MLP(128, 3, width=8), "none"), epochs=2, optim=optim))


@pytest.mark.parametrize("squared", [True, False])
def test_local_terms_clipping_and_augmentation(squared: bool) -> None:
    model = cnn()
    names = [name for name, _ in model.named_parameters()]
    both = Together([FedProx({"mu": 0.3, "squared": squared}), Scaffold()])
    shared = tuple(sorted(names[:-1]))
    local, x, y, tasks = make(model, epochs=2, algorithm=both, shared=shared, clip=0.05, augment="shift_flip")
    tasks = [
        replace(task, inputs={f"1/{name}": torch.randn_like(tasks[0].state[name]) / 10 for name in names[1:-1]})
        for task in tasks
    ]
    changed = assert_engines_agree(local, x, y, tasks)
    for plain in (
        replace(local, algorithm=Together([FedAvg(), Scaffold()])),
        replace(local, algorithm=Together([FedProx({"mu": 0.3, "squared": squared})])),
        replace(local, clip=0.0),
        replace(local, augment="none"),
    ):
        assert not torch.equal(cohort.train(plain, x, y, tasks)[0].state[names[0]], changed[0].state[names[0]])


def test_inputs_that_only_some_clients_have_are_left_to_the_plain_engine() -> None:
    local, x, y, tasks = make(cnn(), algorithm=Scaffold(), shared=("classifier.bias",))
    some = [replace(tasks[0], inputs={"classifier.bias": torch.ones(3, dtype=torch.float64)}), *tasks[1:]]
    with pytest.raises(ValueError, match="client_inputs have other names"):
        cohort.train_together(local, x, y, some)


def test_steps_that_running_statistics_normalise() -> None:
    for model in (cnn(), convert(cnn(), "hybrid_bn")):
        local, x, y, tasks = make(model, epochs=2)
        tasks = [
            replace(task, running=tuple((place + task.client) % 3 == 0 for place in range(len(task.batches))))
            for task in tasks
        ]
        assert_engines_agree(local, x, y, tasks)


def test_clients_that_start_apart_and_go_on_with_their_momentum() -> None:
    model = cnn().double()
    local, x, y, tasks = make(model, state=lambda client: initial(cnn().double()))
    before = copy.deepcopy([task.state for task in tasks])
    tasks = [replace(task, momentum={} if task.client % 2 else None) for task in tasks]
    first = assert_engines_agree(local, x, y, tasks)
    assert [update.momentum is None for update in first] == [True, False, True, False, True]
    going_on = [
        replace(task, state=update.state, momentum=update.momentum) for task, update in zip(tasks, first, strict=True)
    ]
    second = assert_engines_agree(local, x, y, going_on)
    assert [int(update.state["features.1.num_batches_tracked"]) for update in second] == [2, 10, 4, 4, 6]
    for task, state in zip(tasks, before, strict=True):
        assert all(torch.equal(task.state[name], value) for name, value in state.items())


def test_blocks_of_clients_in_the_order_of_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    local, x, y, tasks = make(cnn())
    whole = cohort.train(local, x, y, tasks)
    monkeypatch.setattr(cohort, "TOGETHER", 2)
    assert_same(cohort.train(local, x, y, tasks), whole)
    assert cohort.train(local, x, y, []) == []


def test_schedule_makes_every_step_in_its_order_and_the_longest_way_first() -> None:
    _, _, _, tasks = make(cnn(), [5, 6, 11, 6, 3], epochs=3)
    made: list[list[int]] = [[] for _ in tasks]
    groups = list(cohort.step_groups(tasks, synchronised=False))
    for group, steps in groups:
        left = [len(task.batches) - len(done) for task, done in zip(tasks, made, strict=True)]
        assert max(left) == max(left[row] for row in group)
        assert len({len(tasks[row].batches[step]) for row, step in zip(group, steps, strict=True)}) == 1
        for row, step in zip(group, steps, strict=True):
            made[row].append(step)
    assert made == [list(range(len(task.batches))) for task in tasks]
    assert len(groups) == 9 + 3  # the longest client's steps, and those with 2 samples, which it never has


# --- statistics of all clients' first batches together -------------------------------------------------------------


def by_ranks(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task], synced_steps: int) -> list[dict[str, Tensor]]:
    """Train each client on a rank of its own, the first steps with SyncBatchNorm; gradients are not averaged."""

    def one(rank: int) -> dict[str, Tensor]:
        task = tasks[rank]
        model = copy.deepcopy(local.classifier.model)
        model.load_state_dict(task.state)
        model = convert(model, "sync_bn").train()
        decayed = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() <= 1]
        groups = [{"params": decayed, "weight_decay": local.optim.weight_decay}, {"params": others}]
        sgd = torch.optim.SGD(groups, lr=local.optim.lr, momentum=local.optim.momentum)
        for step, index in enumerate(task.batches):
            if step == synced_steps:
                model = revert(model).train()
            sgd.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            sgd.step()
        return initial(model)

    return ok(run_ranks(len(tasks), one))


@pytest.mark.parametrize("model", ["cnn", "mlp", "resnet8"])
def test_synchronised_first_step_is_that_of_ranks(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort, "TOGETHER", 2)  # which must not part them
    local, x, y, tasks = make(MODELS[model](), [4, 13, 6, 8], algorithm=FedTAN())
    expected = by_ranks(local, x, y, tasks, synced_steps=1)
    for update, state in zip(cohort.train(local, x, y, tasks), expected, strict=True):
        assert set(update.state) == set(state)
        for name, value in state.items():
            torch.testing.assert_close(update.state[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_one_synchronised_step_averaged_is_one_step_on_all_samples() -> None:
    local, x, y, tasks = make(cnn(), [4, 4, 4], algorithm=FedTAN())
    updates = cohort.train(local, x, y, tasks)
    model = cnn().double()
    model.load_state_dict(tasks[0].state)
    sgd = torch.optim.SGD(model.parameters(), lr=local.optim.lr)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(1 - local.optim.lr * local.optim.weight_decay)
    weights = initial(model)
    model.load_state_dict(tasks[0].state)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    model.load_state_dict({**initial(model), **{name: weights[name] for name, _ in model.named_parameters()}})
    sgd.step()
    assert sum(update.loss for update in updates) / 3 == pytest.approx(loss.item(), rel=1e-12)
    for name, value in initial(model).items():
        mean = torch.stack([update.state[name].double() for update in updates]).mean(0)
        torch.testing.assert_close(mean, value.double(), rtol=1e-12, atol=1e-12, msg=name)


def test_synchronised_clients_need_first_batches_of_one_size() -> None:
    with pytest.raises(UserError, match="first batches have 3, 4 samples"):
        cohort.train(*make(cnn(), [3, 4, 8], algorithm=FedTAN()))


def test_synchronised_clients_fail_together() -> None:
    local, x, y, tasks = make(cnn(), [4, 4], algorithm=FedTAN())
    with pytest.raises(UserError, match=r"or not at all, and with this model it fails .*out of bounds"):
        cohort.train(local, x, y.clone().fill_(7), tasks)


# --- what cannot be batched ----------------------------------------------------------------------------------------


def test_a_client_that_fails_does_so_alone() -> None:
    local, x, y, tasks = make(cnn())
    spoilt = y.clone()
    spoilt[tasks[1].batches[2][0]] = 7
    updates = cohort.train(local, x, spoilt, tasks)
    assert "IndexError" in updates[1].error
    del updates[1], tasks[1]
    assert_same(updates, loop.train(local, x, spoilt, tasks))


def test_what_is_not_finite_stays_with_its_client() -> None:
    local, x, y, tasks = make(cnn())
    x[tasks[2].batches[0][0]] = torch.inf
    updates = assert_engines_agree_but(local, x, y, tasks, lost=2)
    assert not updates[2].state["classifier.weight"].isfinite().any()


def assert_engines_agree_but(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task], lost: int) -> list[Update]:
    got, expected = cohort.train(local, x, y, tasks), loop.train(local, x, y, tasks)
    assert_same(*([u for place, u in enumerate(updates) if place != lost] for updates in (got, expected)))
    return got


def test_a_model_that_vmap_cannot_take_is_trained_by_the_plain_engine() -> None:
    model = cnn()
    model.features[1].momentum = None  # type: ignore[union-attr]
    arguments = make(model)
    with pytest.warns(UserWarning, match="the clients could not train in one batched step"):
        got = cohort.train(*arguments)
    assert_same(got, loop.train(*arguments), tolerance=0.0)
    chosen = engine.AutoEngine("auto")
    assert_same(chosen.train(*arguments), got, tolerance=0.0)
    assert chosen.name == "loop"


@pytest.mark.parametrize("sizes", [[4, 4], [2, 3]])
def test_random_layers_are_refused_and_auto_takes_the_plain_engine(sizes: list[int]) -> None:
    arguments = make(nn.Sequential(cnn(), nn.Dropout(0.5)), sizes)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match="choose the engine loop"):
        cohort.train(*arguments)
    assert torch.equal(torch.get_rng_state(), before)
    chosen = engine.AutoEngine("auto")
    assert_same(chosen.train(*arguments), loop.train(*arguments), tolerance=0.0)
    assert chosen.name == "loop"


# --- the choice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", ["cohort", "loop"])
def test_auto_is_the_faster_engine_from_the_first_round_on(fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    local, x, y, tasks = make(cnn())
    clock, calls = [0.0], []

    def timed(name: str, train: engine.Train) -> engine.Train:
        def run(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
            calls.append((name, max(len(task.batches) for task in tasks)))
            clock[0] += 1.0 if name == fast else 2.0
            return train(local, x, y, tasks)

        return run

    monkeypatch.setattr(engine.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cohort, "train_together", timed("cohort", cohort.train_together))
    monkeypatch.setattr(loop, "train", timed("loop", loop.train))
    chosen = engine.AutoEngine("auto")
    expected = engine.ENGINES[fast](local, x, y, tasks)
    calls.clear()
    assert_same(chosen.train(local, x, y, tasks), expected, tolerance=0.0)
    assert chosen.name == fast
    assert set(calls[:4]) == {("cohort", 4), ("loop", 4)}
    probes = len(calls)
    chosen.train(local, x, y, tasks)
    assert all(name == fast for name, _ in calls[probes:])


def test_names_of_engines() -> None:
    for name in engine.ENGINES:
        assert engine.AutoEngine(name).name == name
    with pytest.raises(UserError, match="did you mean 'cohort'"):
        engine.AutoEngine("cohrot")
    synchronised = make(cnn(), [4, 4], algorithm=FedTAN())
    chosen = engine.AutoEngine("auto")
    chosen.train(*synchronised)
    assert chosen.name == "cohort"
