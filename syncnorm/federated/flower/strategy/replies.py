"""The replies to a strategy's messages: who sent them, and what of them can be used."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from torch import Tensor

from syncnorm.federated.aggregation import State, check_update, pooled_pairs
from syncnorm.federated.flower.grid.cohort_grid import reason
from syncnorm.federated.flower.grid.identity import SERVER
from syncnorm.federated.flower.handshake import Word, word_in
from syncnorm.federated.flower.records import arrays_in, from_record
from syncnorm.federated.flower.strategy.metrics import weight_in
from syncnorm.federated.policies import SENT, Reduction

ABSENT = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Errors that Flower makes in the place of a node; they carry the server's id."""


@dataclass(frozen=True)
class Answer:
    """A usable reply to a train message."""

    client: str
    reply: Message
    state: dict[str, Tensor]
    weight: float
    word: Word | None

    @property
    def content(self) -> RecordDict:
        """The reply's records."""
        return self.reply.content


class Asked:
    """The messages of a phase of a round, by which replies are matched with clients."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    def remember(self, messages: Iterable[Message]) -> list[Message]:
        """Take the messages that are about to be sent, and return them."""
        self._messages = list(messages)
        return self._messages

    def close(self, replies: Iterable[Message]) -> tuple[list[tuple[str, Message]], int]:
        """Return the replies with their clients, in the order of node ids, and the number of clients asked.

        Messages have ids once they are sent. If none of the replies is to one of them, somebody else made the
        messages, and as many were asked as replied.
        """
        nodes = {one.metadata.message_id: one.metadata.dst_node_id for one in self._messages}
        nodes.pop("", None)
        self._messages = []
        given = list(replies)
        ours = not given or any(reply.metadata.reply_to_message_id in nodes for reply in given)
        named = sorted(((_node(reply, nodes), reply) for reply in given), key=lambda pair: pair[0] or 0)
        who = [(f"client {node}" if node is not None else "a node", reply) for node, reply in named]
        return who, max(len(nodes), len(given)) if ours else len(given)


def answer_of(client: str, reply: Message, weighted_by: str, arrays_key: str) -> Answer:
    """Return what a reply to a train message holds.

    Raises:
        ValueError: an error reply, no model, or no weight; the message does not name the client.
    """
    if reply.has_error():
        raise ValueError(_with_remedy(reason(reply)))
    weight = weight_in(reply.content, weighted_by)
    state = from_record(arrays_in(reply.content, arrays_key))
    return Answer(client, reply, state, weight, word_in(reply.content))


def sent_by_most(answers: Sequence[Answer], reductions: Mapping[str, Reduction]) -> dict[str, Reduction]:
    """Return the reductions of the entries that at least half of the clients sent, of those that clients send.

    The others are left as they are: an app may train a part of a model.
    """
    found = {
        name: reduction
        for name, reduction in reductions.items()
        if reduction in SENT and 2 * sum(name in answer.state for answer in answers) >= len(answers)
    }
    for mean, variance in pooled_pairs(found):
        if mean not in found:
            del found[variance]
    return found


def fitting(
    answers: Iterable[Answer], current: State, reductions: Mapping[str, Reduction]
) -> tuple[list[Answer], list[tuple[str, str]]]:
    """Return the answers whose updates may enter the model, and the other clients, each with the reason."""
    usable, wrong = [], []
    for answer in answers:
        try:
            name = answer.client.removeprefix("client ")
            check_update(current, answer.state, reductions, name, any_precision=True)
            usable.append(answer)
        except ValueError as error:
            wrong.append((answer.client, _with_remedy(str(error))))
    return usable, wrong


_REMEDIES = {
    "secaggplus_configs": (
        "Flower's secure aggregation shows the server a sum of the clients' models alone, which NormFedAvg cannot "
        "use: take MaskedNorm and masked_mod, or leave secaggplus_mod out"
    ),
    "LocalDpMod expects the keys": "NormFedAvg(..., whole_replies=True) lets clients send every entry",
    "with a negative variance": (
        "noise of a mod such as LocalDpMod may have made it negative; with silobn or fedbn, and whole_replies=True, "
        "running statistics stay with the clients"
    ),
}


def _with_remedy(problem: str) -> str:
    """Return what was wrong with a reply, and what to do where a mod of Flower's is known to be the cause."""
    remedy = next((remedy for sign, remedy in _REMEDIES.items() if sign in problem), "")
    return f"{problem.rstrip('.')}: {remedy}." if remedy else problem


def changed(answer: Answer, current: State, names: Iterable[str]) -> list[str]:
    """Return which of some entries a client has sent with other values than it received."""
    found = ((name, answer.state.get(name)) for name in names if name in current)
    return [
        name
        for name, value in found
        if value is not None and (value.shape != current[name].shape or not _equal(value, current[name]))
    ]


def _equal(value: Tensor, own: Tensor) -> bool:
    own = own.to(value.dtype)  # a client may send another precision
    return bool(((value == own) | ((value != value) & (own != own))).all())


def _node(reply: Message, nodes: Mapping[str, int]) -> int | None:
    """Return the node that a reply is about; None if Flower does not say."""
    data = reply.metadata
    if data.reply_to_message_id in nodes:
        return nodes[data.reply_to_message_id]
    absent = reply.has_error() and reply.error.code in ABSENT and data.src_node_id == SERVER
    return None if absent else data.src_node_id
