"""Small federated runs in float64, and local training written out by hand to hold them against."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.config import Clients, Data, Norm, Optim, Run
from syncnorm.federated.client.states import ClientStates, InMemory
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.local import Local, Task, Update
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds

State = dict[str, Tensor]
DATA = Data("digits", size=8, train_limit=120, test_limit=60)
PLAIN = Optim(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)
NORM_LAYERS = ("features.1", "features.5", "features.9")
"""Of small_cnn, written out: that they are found is what is tested."""
STATISTICS = ("running_mean", "running_var")


def small_run(
    *,
    data: Data = DATA,
    model: str = "small_cnn",
    norm: str = "bn",
    norm_options: dict[str, Any] | None = None,
    optim: Optim = PLAIN,
    seed: int = 0,
    validation: float = 0.0,
    **world: Any,
) -> Run:
    """Return a run of three clients and two rounds on the plain engine, but for what `world` changes.

    With `validation`, the round is chosen by it.
    """
    clients = Clients(**{"count": 3, "rounds": 2, "batch": 16, "engine": "loop", **world})
    width = {"width": 2} if model == "small_cnn" else {}
    run = Run(data, model, width, Norm(norm, norm_options or {}), clients, optim, "float64", seed)
    return replace(run, data=replace(data, validation=validation), select="best") if validation else run


def start(run: Run, engine: Any = None, store: ClientStates | None = None) -> Rounds:
    """Return a run whose rounds are still to be played."""
    assert isinstance(run.world, Clients)
    federation = Federation(run, torch.device("cpu"))
    chosen = AutoEngine(run.world.engine) if engine is None else engine
    return Rounds(federation, InProcess(federation, InMemory() if store is None else store, chosen))


def play(run: Run, rounds: int | None = None, engine: Any = None, store: ClientStates | None = None) -> Rounds:
    """Return a run with all of its rounds played, or so many."""
    assert isinstance(run.world, Clients)
    under_way = start(run, engine, store)
    for _ in range(run.world.rounds if rounds is None else rounds):
        under_way.play()
    return under_way


class Spoiled:
    """The plain engine, but for what some clients make of it."""

    name = "spoiled"

    def __init__(
        self, spoil: Callable[[Update], Update], clients: Iterable[int], rounds: Iterable[int] = (0,)
    ) -> None:
        self.spoil, self.clients, self.rounds = spoil, set(clients), set(rounds)
        self.round = -1

    def train(self, local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
        """Return the updates of `tasks`, some of them spoiled in some calls."""
        self.round += 1
        updates = AutoEngine("loop").train(local, x, y, tasks)
        if self.round not in self.rounds:
            return updates
        return [self.spoil(update) if update.client in self.clients else update for update in updates]


def changed(update: Update, **entries: Tensor) -> Update:
    """Return an update with other entries; "__" stands for the point in a name."""
    new = {name.replace("__", "."): value for name, value in entries.items()}
    return replace(update, state={**update.state, **new})


def by_hand(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    batches: Sequence[Tensor],
    lr: float,
    *,
    momentum: float = 0.0,
    decay: float = 0.0,
    velocity: State | None = None,
    correction: Mapping[str, Tensor] | None = None,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    mode: Callable[[nn.Module], object] = lambda model: model.train(),
) -> tuple[list[float], State]:
    """Train `model` in place by SGD, written out; return the loss of each step, and the velocity.

    g = grad(cross-entropy + penalty) + decay w (matrices alone) + correction;  v = momentum v + g;  w = w - lr v.
    """
    names, parameters = zip(*model.named_parameters(), strict=True)
    velocity = dict(velocity or {})
    losses = []
    for index in batches:
        mode(model)
        loss = F.cross_entropy(model(x[index]), y[index])
        losses.append(loss.item())
        total = loss if penalty is None else loss + penalty(model)
        with torch.no_grad():
            for name, p, g in zip(names, parameters, torch.autograd.grad(total, parameters), strict=True):
                step = g + (decay * p if p.dim() > 1 else 0.0)
                if correction is not None and name in correction:
                    step = step + correction[name]
                velocity[name] = momentum * velocity[name] + step if name in velocity else step
                p -= lr * velocity[name]
    return losses, velocity


def batches_of(rounds: Rounds, client: int, round_: int) -> tuple[Tensor, ...]:
    """Return a client's local batches in a round."""
    return rounds.federation.schedule.plan(client, round_).batches


def fresh_model(rounds: Rounds, state: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Return a model of the run's kind with its first weights, or with a state."""
    model = rounds.federation.models.build()
    if state is not None:
        model.load_state_dict(state)
    return model


def weighted_mean(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> State:
    """Return the mean of states, weighted, entry by entry; of integers the largest."""
    total = sum(weights)
    return {
        name: sum(w / total * state[name] for w, state in zip(weights, states, strict=True))
        if value.is_floating_point()
        else max(state[name] for state in states)
        for name, value in states[0].items()
    }


def assert_same(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: Iterable[str] | None = None
) -> None:
    """Compare states entry by entry, in float64 up to rounding."""
    names = list(expected if names is None else names)
    assert names
    for name in names:
        torch.testing.assert_close(
            found[name], expected[name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


def bits(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """Return the bytes of a state's values, to be compared by ==."""
    flat = {name: value.detach().contiguous().view(-1).view(torch.uint8) for name, value in state.items()}
    return {name: value.numpy().tobytes() for name, value in flat.items()}


def is_statistics(name: str) -> bool:
    """Say whether an entry of small_cnn is a running statistic or the counter that goes with them."""
    return name.endswith((*STATISTICS, "num_batches_tracked"))


def is_affine(name: str) -> bool:
    """Say whether an entry of small_cnn is gamma or beta of a batch norm."""
    return name.startswith(NORM_LAYERS) and name.endswith(("weight", "bias"))


def every_kind_of_tensor(client: int) -> dict[str, Tensor]:
    """Return a tensor of every kind; names and shapes are the same for each client."""
    generator = torch.Generator().manual_seed(client)
    base = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    return {
        "flag": torch.tensor([True, False, client % 2 == 0]),
        "state.a.num_batches_tracked": torch.tensor(2**40 + client),
        "bytes": torch.arange(7, dtype=torch.uint8) + client,
        "double": base,
        "half": base.half(),
        "state.float": base.float(),
        "brain": base.bfloat16(),
        "empty": torch.zeros(0),
        "emptier": torch.zeros(3, 0, 2, dtype=torch.int64),
        "int32": torch.tensor([[client]], dtype=torch.int32),
        "scalar": torch.tensor(1.5 * client, dtype=torch.float64),
        "transposed": base.t(),
        "sliced": base[1:, ::2],
        "special": torch.tensor([torch.nan, torch.inf, -0.0, 5e-324], dtype=torch.float64),
    }
