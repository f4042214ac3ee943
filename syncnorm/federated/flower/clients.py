"""The client's side of a policy, as two lines in a ClientApp.

@app.train()
def train(message: Message, context: Context) -> Message:
    load_global(model, message, context, policy="fedbn")
    ...                                                          # your training, as it is
    return reply_with(model, message, context, {"num-examples": len(samples), "loss": loss}, policy="fedbn")
"""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict
from torch import nn

from syncnorm.federated.flower.records import arrays_in, from_record, to_record
from syncnorm.federated.flower.strategy import check_policy
from syncnorm.federated.policies import KEPT, SENT, Policy, rules

HOME = "syncnorm-kept"
"""Key, in a client's state, of the entries that never leave it."""


def load_global(model: nn.Module, message: Message, context: Context, policy: str | Policy = "fedavg_pooled") -> None:
    """Load the model from a message, with the client's own values for entries that stay with it.

    A client that trains for the first time loads all entries from the message.
    """
    state = from_record(arrays_in(message.content))
    kept = context.state.get(HOME)
    if isinstance(kept, ArrayRecord):
        reductions = rules(model, check_policy(policy))
        state |= {name: value for name, value in from_record(kept).items() if reductions.get(name) in KEPT}
    model.load_state_dict(state)


def reply_with(
    model: nn.Module,
    message: Message,
    context: Context,
    metrics: Mapping[str, Any],
    policy: str | Policy = "fedavg_pooled",
) -> Message:
    """Return the reply to a message, and store in `context.state` the entries that the policy leaves with the client.

    The reply to a train message has the shared entries of the trained model and the metrics, which must include the
    client's weight ("num-examples", or the strategy's `weighted_by_key`). The reply to any other message has only the
    metrics, and nothing is stored.
    """
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if message.metadata.message_type.split(".")[0] == MessageType.TRAIN:
        reductions, state = rules(model, check_policy(policy)), model.state_dict()
        content["arrays"] = to_record({name: value for name, value in state.items() if reductions[name] in SENT})
        if kept := {name: value for name, value in state.items() if reductions[name] in KEPT}:
            context.state[HOME] = to_record(kept)
    return Message(content, reply_to=message)
