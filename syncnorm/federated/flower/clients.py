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
"""Under this name a client's state holds what never leaves it."""


def load_global(model: nn.Module, message: Message, context: Context, policy: str | Policy = "fedavg_pooled") -> None:
    """Load the model that a message brings, with the client's own entries in the place of those that stay at home.

    A client that trains for the first time takes all entries from the message.
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
    """Return the reply to a message, and keep in `context.state` what the policy leaves with the client.

    To a train message: the shared entries of the trained model and the metrics, which must say how much the client
    counts ("num-examples", or what the strategy's `weighted_by_key` names). To any other: the metrics alone; nothing
    is kept.
    """
    content = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if message.metadata.message_type.split(".")[0] == MessageType.TRAIN:
        reductions, state = rules(model, check_policy(policy)), model.state_dict()
        content["arrays"] = to_record({name: value for name, value in state.items() if reductions[name] in SENT})
        if kept := {name: value for name, value in state.items() if reductions[name] in KEPT}:
            context.state[HOME] = to_record(kept)
    return Message(content, reply_to=message)
