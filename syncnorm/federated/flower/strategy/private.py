"""Flower's differential privacy around NormFedAvg, without damage to running statistics."""

from collections.abc import Iterable
from typing import Any, Literal, get_args

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from syncnorm.errors import UserError, unknown
from syncnorm.federated.aggregation import VARIANCE
from syncnorm.federated.flower.records import arrays_in, from_record, to_record
from syncnorm.federated.flower.strategy.norm_fed_avg import NormFedAvg
from syncnorm.federated.policies import COUNTER

Rule = Literal["floor", "exact"]


class PrivateNorm(Strategy):
    """A wrapper for Flower's differential-privacy strategies around `NormFedAvg`.

        private = DifferentialPrivacyServerSideFixedClipping(NormFedAvg(model, "silobn"), 1.0, 5.0, 10)
        PrivateNorm(private, variances="exact").start(grid, initial_arrays=ArrayRecord(model.state_dict()))

    Flower's strategies clip and add noise to every entry, counters and running variances too: a negative variance
    makes outputs NaN, and counters take up most of the clipping norm. They also need every entry in every reply,
    which policies such as fedbn do not send. Here clients send what stays with them as they received it, it gets no
    noise, and `variances` says what happens to the buffers that the server combines:

        "floor"    they are clipped and get noise; negative variances and counters become 0, which costs no privacy
        "exact"    they are combined as without privacy: the guarantee covers the parameters alone

    With silobn and fedbn no statistics leave the clients, and the guarantee covers all that does. A mod that clips at
    the client, such as `fixedclipping_mod`, clips buffers under both rules.

    Args:
        private: Flower's strategy.
        variances: the rule.

    Raises:
        UserError: a strategy that wraps no `NormFedAvg`, or an unknown rule.
    """

    def __init__(self, private: Any, variances: Rule = "floor") -> None:
        inner = getattr(private, "strategy", None)
        if not isinstance(inner, NormFedAvg):
            raise UserError(
                f"PrivateNorm got {type(private).__name__}: give it one of Flower's differential-privacy strategies "
                "around a NormFedAvg."
            )
        if variances not in get_args(Rule):
            raise unknown("variances", str(variances), get_args(Rule))
        self.private, self.inner, self.variances = private, inner, variances
        inner.send_whole_replies()

    def summary(self) -> None:
        """Log the settings of the strategies inside."""
        self.private.summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's messages."""
        messages: Iterable[Message] = self.private.configure_train(server_round, arrays, config, grid)
        return messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round's evaluation."""
        messages: Iterable[Message] = self.private.configure_evaluate(server_round, arrays, config, grid)
        return messages

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' metrics."""
        metrics: MetricRecord | None = self.private.aggregate_evaluate(server_round, replies)
        return metrics

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model and the clients' metrics."""
        given = list(replies)
        for reply in given:
            if not reply.has_error():
                self._prepare(reply)
        arrays, metrics = self.private.aggregate_train(server_round, given)
        self.inner.aside.clear()
        return (self._mended(arrays) if arrays else arrays), metrics

    def _prepare(self, reply: Message) -> None:
        """Give a reply every entry, and put its buffers aside if they are to be exact."""
        try:
            record = arrays_in(reply.content, self.inner.arrayrecord_key)
        except ValueError:
            return  # NormFedAvg leaves it out
        state, sent = self.inner.arrays, dict(record)
        if self.variances == "exact":
            names = {self.inner.sent_as(name) for name in self.inner.buffers}
            buffers = {name: sent.pop(name) for name in list(sent) if name in names}
            self.inner.aside[reply.metadata.reply_to_message_id] = from_record(ArrayRecord(buffers))
        key = next(name for name, value in reply.content.items() if value is record)
        others = {name: value for name, value in sent.items() if name not in state}
        whole = {name: sent.get(name, value) for name, value in state.items()}
        reply.content[key] = ArrayRecord({**whole, **others})

    def _mended(self, arrays: ArrayRecord) -> ArrayRecord:
        """Return the model after noise with the entries that get none, in the model's types."""
        before, after = from_record(self.inner.arrays), from_record(arrays)
        name_of = self.inner.sent_as
        spared = set(map(name_of, self.inner.home | (self.inner.buffers if self.variances == "exact" else set())))
        mended = {name: value if name in spared else after[name].to(value.dtype) for name, value in before.items()}
        positive = {name_of(name) for name in self.inner.buffers if name.endswith((VARIANCE, COUNTER))}
        return to_record({name: x.clamp(min=0) if name in positive else x for name, x in mended.items()})
