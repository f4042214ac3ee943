"""The client's side of a policy, as two lines in a ClientApp.

@app.train()
def train(message: Message, context: Context) -> Message:
    load_global(model, message, context)
    ...                                                          # your training, as it is
    return reply_with(model, message, context, {"num-examples": len(samples), "loss": loss})
"""

from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.flower.handshake import WORD, check_policy, terms_for, word
from syncnorm.federated.flower.records import arrays_in, from_record, to_record
from syncnorm.federated.policies import KEPT, Policy, counters, rules
from syncnorm.files import write_file
from syncnorm.surgery import recalibrate

HOME = "syncnorm-kept"
"""Key, in a client's state, of the entries that never leave it."""


def load_global(
    model: nn.Module,
    message: Message,
    context: Context,
    policy: str | Policy | None = None,
    *,
    batches: Iterable[Tensor] | None = None,
    folder: str | Path | None = None,
) -> None:
    """Load the model from a message, with the client's own values for entries that stay with it.

    A client without entries of its own, because it is new or has lost them, loads all entries from the message. With
    `NormFedAvg(unsampled="reestimated")` it then measures its running statistics on its own data.

    Args:
        model: gets the entries; those that the message does not hold stay as they are.
        message: from the server.
        context: of the client.
        policy: None follows the server's policy; a policy of your own must keep the same parts as the server's.
        batches: batches of the client's inputs, which only "reestimated" needs, and only where nothing is kept.
        folder: a folder in which `reply_with` has kept the entries too, so that they survive a restart of the node.
            Give each run its own.

    Raises:
        UserError: a policy that contradicts the server's; no batches to re-estimate statistics with.
        ValueError: a message without a model, or with several.
    """
    terms = terms_for(message, policy)
    reductions = rules(model, check_policy(terms.policy))
    state = from_record(arrays_in(message.content))
    if HOME not in context.state and folder is not None and (path := _file(folder, context)).exists():
        context.state[HOME] = to_record(torch.load(path, weights_only=True))
    home = context.state.get(HOME)
    own = from_record(home) if isinstance(home, ArrayRecord) else {}
    own = {name: value for name, value in own.items() if reductions.get(name) in KEPT}
    rest = model.state_dict() if terms.part else {}
    model.load_state_dict({**rest, **state, **own})
    if terms.unsampled == "reestimated" and not own and any(value in KEPT for value in reductions.values()):
        if batches is None:
            raise UserError(
                "the server asks new clients to re-estimate their running statistics: call load_global with batches= "
                "of the client's inputs."
            )
        recalibrate(model, batches)


def reply_with(
    model: nn.Module,
    message: Message,
    context: Context,
    metrics: Mapping[str, Any],
    policy: str | Policy | None = None,
    *,
    folder: str | Path | None = None,
) -> Message:
    """Return the reply to a message, and store in `context.state` the entries that the policy leaves with the client.

    The reply to a train message has the shared entries of the trained model that the message had, and the metrics,
    which must include the client's weight ("num-examples", or the strategy's `weighted_by_key`) unless the strategy
    asks for no counts, which are then left out. The reply to any
    other message has only the metrics, and nothing is stored. Both tell the server which client this is, and whether
    it had entries of its own.

    Args:
        model: after training.
        message: from the server.
        context: of the client.
        metrics: numbers, or lists of numbers.
        policy: None follows the server's policy.
        folder: where to keep the entries too (`load_global`).
    """
    terms = terms_for(message, policy)
    had_own = isinstance(context.state.get(HOME), ArrayRecord)
    said = {name: value for name, value in metrics.items() if name != terms.uncounted}
    content = RecordDict({"metrics": MetricRecord(said)})
    if terms.told:
        content[WORD] = word(context, had_own)
    if message.metadata.message_type.split(".")[0] == MessageType.TRAIN:
        reductions, state = rules(model, check_policy(terms.policy)), model.state_dict()
        received = from_record(arrays_in(message.content))
        kept = {name: value for name, value in state.items() if reductions[name] in KEPT}
        sent = {name: value for name, value in state.items() if name not in kept}
        if terms.unsampled in ("average", "pooled"):
            sent |= kept
        elif terms.whole:
            sent |= {name: received[name] for name in kept if name in received}
        if terms.uncounted:
            sent = {name: value for name, value in sent.items() if name not in counters(model)}
        names = received if terms.part else {**received, **sent}
        content["arrays"] = to_record({name: sent[name] for name in names if name in sent})
        if kept:
            context.state[HOME] = to_record(kept)
            if folder is not None:
                _store(_file(folder, context), kept)
    return Message(content, reply_to=message)


def _file(folder: str | Path, context: Context) -> Path:
    client = context.node_config.get("partition-id", context.node_id)
    return Path(folder) / f"run-{context.run_id}" / f"client-{client}.pt"


def _store(path: Path, kept: Mapping[str, Tensor]) -> None:
    content = BytesIO()
    torch.save(dict(kept), content)
    write_file(path, content.getvalue())
