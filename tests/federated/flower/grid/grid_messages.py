"""Messages to clients of a CohortGrid, and a client that answers with its number."""

from collections.abc import Callable

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp


def app_of(function: Callable[[Message, Context], Message]) -> ClientApp:
    app = ClientApp()
    app.train()(function)
    return app


def echo(message: Message, context: Context) -> Message:
    return Message(RecordDict({"m": MetricRecord({"node": context.node_id})}), reply_to=message)


def to(nodes: list[int], content: RecordDict | None = None, **options: float) -> list[Message]:
    return [Message(content or RecordDict(), node, "train", **options) for node in nodes]


def nodes_of(replies: list[Message]) -> list[int]:
    return [reply.metadata.src_node_id for reply in replies]
