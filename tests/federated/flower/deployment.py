"""A deployment of the apps without processes: nodes with ids of their own, which leave and come back."""

from collections.abc import Callable, Iterable
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from syncnorm.config import Clients, Data, Optim, Run
from syncnorm.federated import CohortGrid, client_app
from syncnorm.federated.flower.grid.identity import stamp

COUNT = 4


class OnNodes(ClientApp):
    """The client app on nodes with more in their --node-config."""

    def __init__(self, **config: str) -> None:
        super().__init__()
        self.config = config

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message."""
        context.node_config = {**context.node_config, **self.config}
        return client_app(message, context)


class Cut(Exception):
    """The end of the server's process."""


class Deployment(Grid):
    """Nodes with ids of their own in front of a CohortGrid.

    Args:
        event: called with the deployment and the kind of each phase, before its messages are delivered.
        config: what the nodes' --node-config has beside the partition-id.
    """

    def __init__(self, event: Callable[["Deployment", str, int], None], **config: object) -> None:
        app = OnNodes(**{name: str(value) for name, value in config.items()})
        self.inner = CohortGrid(app, COUNT, engine="loop")
        self.mute: set[int] = set()
        """Clients whose replies get lost."""
        self.event = event
        self.nodes = {1001 + client: client for client in range(COUNT)}
        self.phases: dict[str, int] = {}
        self._inbox: dict[str, Message] = {}
        self._sent = 0
        self._pulled: list[Message] = []

    def restart(self, client: int, node: int) -> None:
        """Let a client come back as another node, without its state."""
        self.leave(client)
        self.nodes[node] = client
        self.inner.states.pop(client + 1, None)

    def leave(self, client: int) -> None:
        """Take a client's node away."""
        self.nodes = {node: own for node, own in self.nodes.items() if own != client}

    set_run = run = create_message = None  # type: ignore[assignment]

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes that are connected."""
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages."""
        names = []
        for message in messages:
            self._sent += 1
            stamp(message, f"m{self._sent}")
            self._inbox[f"m{self._sent}"] = message
            names.append(f"m{self._sent}")
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Deliver messages and return the replies; Flower's own error in the place of a node that has left."""
        asked = [self._inbox.pop(name) for name in sorted(message_ids) if name in self._inbox]
        if asked:
            kind = asked[0].metadata.message_type
            self.phases[kind] = self.phases.get(kind, 0) + 1
            self._pulled = asked
            self.event(self, kind, self.phases[kind])
        return [self._deliver(message) for message in asked]

    def deliver_all(self) -> None:
        """Let the nodes work on the messages of a phase, whose replies nobody gets."""
        for message in self._pulled:
            self._deliver(message)

    def _deliver(self, message: Message) -> Message:
        node, name = message.metadata.dst_node_id, message.metadata.message_id
        if node not in self.nodes:
            error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "Node Unavailable"), reply_to=message)
            error.metadata.__dict__["_src_node_id"] = 1
            return error
        inner = Message(message.content, self.nodes[node] + 1, message.metadata.message_type)
        (reply,) = self.inner.send_and_receive([inner])
        if self.nodes[node] in self.mute:
            return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "Reply Lost"), reply_to=message)
        reply.metadata.__dict__.update(_src_node_id=node, _reply_to_message_id=name)
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return the replies."""
        return self.pull_messages(self.push_messages(messages))


def make_run(**world: Any) -> Run:
    return Run(
        data=Data("digits", train_limit=200, test_limit=80), model="mlp", precision="float64",
        optim=Optim(lr=0.1, momentum=0.0 if world.get("algorithm") == "scaffold" else 0.9),
        world=Clients(**{"count": COUNT, "rounds": 3, "engine": "loop", **world}),
    )  # fmt: skip


def nothing(grid: Deployment, kind: str, count: int) -> None:
    """No node leaves."""
