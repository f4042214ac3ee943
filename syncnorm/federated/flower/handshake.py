"""What a server and its clients tell each other about a policy, in the records of their messages.

The server adds to the config of each message which parts of batch norm stay with the clients. A client that follows
it adds a record to its reply: which client it is, and whether it had entries of its own.
"""

from dataclasses import dataclass, replace
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from syncnorm.errors import UserError
from syncnorm.federated.policies import POLICIES, Policy, policy_named

POLICY, AFFINE, STATISTICS = "norm-policy", "norm-affine", "norm-statistics"
UNSAMPLED, WHOLE, PART = "norm-unsampled", "norm-whole-replies", "norm-part-of-the-model"
UNCOUNTED = "norm-uncounted"
WORD, CLIENT, OWN = "norm-client", "client", "had-own-entries"


@dataclass(frozen=True)
class Terms:
    """The server's side of the agreement.

    policy: who keeps what. name: its name, for messages.
    unsampled: what a client without entries of its own starts from (`NormFedAvg`).
    whole: whether replies also hold the entries that stay with the client, as they were received.
    part: whether the message's arrays are a part of the model's state.
    uncounted: the metric that replies leave out, together with counters of batches; empty if clients send counts.
    told: whether the server has said so, or a client assumes it.
    """

    policy: Policy
    name: str
    unsampled: str = "initial"
    whole: bool = False
    part: bool = False
    uncounted: str = ""
    told: bool = False

    def put_into(self, config: ConfigRecord, part: bool) -> None:
        """Add the terms to the config of a message."""
        config[POLICY], config[AFFINE], config[STATISTICS] = self.name, self.policy.affine, self.policy.statistics
        config[UNSAMPLED], config[WHOLE], config[PART] = self.unsampled, self.whole, part
        config[UNCOUNTED] = self.uncounted


@dataclass(frozen=True)
class Word:
    """A client's side: which client it is, whatever its node, and whether it had entries of its own."""

    client: int
    own: bool


def name_of(policy: str | Policy) -> str:
    """Return the name of a policy, also of one that is given as a row of the table."""
    if isinstance(policy, str):
        return policy
    return next((name for name, row in POLICIES.items() if row == policy), "a policy of one's own")


def check_policy(policy: str | Policy) -> Policy:
    """Return the policy if it only asks clients to keep entries; a policy that changes training raises
    `UserError`."""
    row = policy_named(policy)
    if _is_averaging(row):
        return row
    offered = [name for name, other in POLICIES.items() if _is_averaging(other)]
    name = policy if isinstance(policy, str) else "this policy"
    raise UserError(
        f"{name} also changes how clients train, which a strategy cannot: choose one of {', '.join(offered)}, or run "
        "it with syncnorm.federated.simulate."
    )


def _is_averaging(row: Policy) -> bool:
    plain = row.averages and row.training == "batch" and row.statistics_source == "ema"
    return plain and not row.options


def shared_by_rule(row: Policy, unsampled: str) -> Policy:
    """Return how the server treats a policy's entries, if it also combines those that stay with the clients."""
    if unsampled not in ("average", "pooled"):
        return row
    statistics: Any = unsampled if row.statistics == "local" else row.statistics
    return replace(row, affine="shared", statistics=statistics)


def terms_for(message: Message, policy: str | Policy | None) -> Terms:
    """Return the terms of a message, which a client's own choice of a policy must not contradict.

    A server that says nothing averages everything, unless the client's app names a policy.

    Raises:
        UserError: server and client keep different parts with the client.
    """
    told = _told(message.content)
    if policy is None:
        return told or Terms(policy_named("fedavg"), "fedavg")
    row = policy_named(policy)
    if told is None:
        return Terms(row, name_of(policy))
    if _kept(row) != _kept(told.policy):
        raise UserError(
            f"the server's policy is {told.name}, and this client's is {name_of(policy)}: leave out policy= in "
            "load_global and reply_with, which then follow the server."
        )
    return told


def word(context: Context, own: bool) -> ConfigRecord:
    """Return a client's word: it goes by its partition-id, because a node that restarts has a new id."""
    return ConfigRecord({CLIENT: int(context.node_config.get("partition-id", context.node_id)), OWN: own})


def word_in(content: RecordDict) -> Word | None:
    """Return the word in a reply; None if the client's app does not follow the server's policy."""
    record = content.get(WORD)
    if not isinstance(record, ConfigRecord):
        return None
    client, own = record.get(CLIENT), record.get(OWN)
    return Word(client, own) if isinstance(client, int) and isinstance(own, bool) else None


def _told(content: RecordDict) -> Terms | None:
    for record in content.values():
        if isinstance(record, ConfigRecord) and POLICY in record:
            row = Policy(record[AFFINE], record[STATISTICS], str(record[POLICY]))  # type: ignore[arg-type]
            unsampled, whole, part = str(record[UNSAMPLED]), bool(record[WHOLE]), bool(record[PART])
            uncounted = str(record.get(UNCOUNTED, ""))
            return Terms(row, str(record[POLICY]), unsampled, whole, part, uncounted, told=True)
    return None


def _kept(row: Policy) -> tuple[bool, bool]:
    return row.affine == "local", row.statistics == "local"
