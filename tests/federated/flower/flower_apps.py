"""A user's small Flower app with batch norm, as the tests of CohortGrid and NormFedAvg run it."""

from collections.abc import Callable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from torch import nn

from syncnorm.federated.flower.clients import load_global, reply_with

SIZES = (12, 20, 7, 16, 9, 25)


def make_model(seed: int = 0) -> nn.Module:
    """Return a network in float64; none of its batch norms is named like one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6),
            nn.ReLU(), nn.Linear(6, 2),
        ).double()  # fmt: skip


def data(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a client's samples; every client's are shifted by its number."""
    generator = torch.Generator().manual_seed(partition)
    count = SIZES[partition % len(SIZES)]
    x = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64) + partition % 5
    return x, (x.mean((1, 2, 3)) > partition % 5).long()


def fit(model: nn.Module, partition: int) -> float:
    """Train a model for two steps and return the last loss."""
    x, y = data(partition)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def plain_client_app() -> ClientApp:
    """Return the app that Flower's documentation would have one write."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = make_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        partition = int(context.node_config["partition-id"])
        loss = fit(model, partition)
        metrics = MetricRecord({"num-examples": len(data(partition)[0]), "loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = make_model()
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        model.eval()
        x, y = data(int(context.node_config["partition-id"]))
        with torch.no_grad():
            accuracy = (model(x).argmax(1) == y).double().mean().item()
        metrics = MetricRecord({"num-examples": len(x), "accuracy": accuracy})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def home_client_app(policy: str | None) -> ClientApp:
    """Return the same app with the two lines of a policy; None: the policy that the round's config names."""
    app = ClientApp()

    def policy_of(message: Message) -> str:
        return policy or str(message.content["config"]["policy"])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.content["config"]["server-round"] == 1:
            context.state.clear()
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context, policy_of(message))
        loss = fit(model, partition)
        metrics = {"num-examples": len(data(partition)[0]), "loss": loss}
        return reply_with(model, message, context, metrics, policy_of(message))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model = make_model()
        load_global(model, message, context, policy_of(message))
        x, y = data(int(context.node_config["partition-id"]))
        with torch.no_grad():
            accuracy = (model.eval()(x).argmax(1) == y).double().mean().item()
        return reply_with(model, message, context, {"num-examples": len(x), "accuracy": accuracy}, policy_of(message))

    return app


class Keeping(ServerApp):
    """A ServerApp that runs a strategy and keeps its result."""

    def __init__(self, make_strategy: Callable[[], Strategy], rounds: int = 3) -> None:
        super().__init__()
        self.result: Any = None

        @self.main()
        def main(grid: Grid, context: Context) -> None:
            self.result = make_strategy().start(
                grid=grid, initial_arrays=ArrayRecord(make_model().state_dict()), num_rounds=rounds
            )

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The final global model."""
        return dict(self.result.arrays.to_torch_state_dict())
