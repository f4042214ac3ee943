"""Flower's FedAvg for models with batch norm: layers found by type, a policy for each part, integer counters."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from logging import INFO, WARNING
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor, nn

from syncnorm.errors import UserError, unknown
from syncnorm.federated.aggregation import combine, normalised_weights
from syncnorm.federated.aggregations import aggregation_of
from syncnorm.federated.aggregations.base import WEIGHTED, Aggregation
from syncnorm.federated.flower.grid.cohort_grid import CohortGrid, reason, too_few_nodes
from syncnorm.federated.flower.handshake import Terms, Word, check_policy, name_of, shared_by_rule, word_in
from syncnorm.federated.flower.strategy.metrics import weight_in, weighted_means, without_weight
from syncnorm.federated.flower.strategy.replies import Answer, Asked, answer_of, changed, fitting, sent_by_most
from syncnorm.federated.flower.strategy.server_step import is_robust, refuse_wrong_order, server_step, trained_names
from syncnorm.federated.flower.strategy.state import Global
from syncnorm.federated.flower.strategy.wrappers import wrapper_of
from syncnorm.federated.policies import KEPT, Policy, counters, rules
from syncnorm.surgery import batch_norms

LEFT_OUT = "clients-left-out"
"""The metric that counts the clients of a round whose replies were unusable."""
LOST = "clients-lost-state"
"""The metric that counts the clients of a round that had lost the entries that stay with them."""
UNSAMPLED = ("initial", "average", "pooled", "reestimated")


class NormFedAvg(FedAvg):
    """FedAvg that treats batch norm by a policy; a drop-in for `flwr.serverapp.strategy.FedAvg`.

        strategy = NormFedAvg(model, policy="fedavg_pooled", fraction_train=0.1)
        strategy.start(grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=20)

    FedAvg averages every array, including counters; this strategy uses `syncnorm.federated.aggregate` instead: the
    running variance of fedavg_pooled is that of all clients' samples together, counters stay integers, every entry
    keeps its dtype, and entries that a policy leaves with the clients do not change. Clients are summed in the order
    of node ids.

    The arrays may be a part of the model's state or a list in its order, and clients may send a part of what they
    get: entries that fewer than half of a round's clients send stay as they are.

    For policies that keep entries with clients (fedbn, silobn, stats_shared), `load_global` and `reply_with` are the
    client's side. Each message's config tells them the policy. A client that sends what should stay with it, or has
    lost it, is named in the log and in `notes`; the metric "clients-lost-state" counts the latter.

    A reply is left out if it is an error, has no weight from 0 on, or has a model that does not match, or has become
    infinite. The log and `left_out` name it, and the metric "clients-left-out" counts it. A client of weight zero
    changes nothing and is not left out. Metrics decide nothing: a mean is taken over the clients that sent a metric,
    and a function of your own gets them as they are.

    Another strategy of Flower takes the server's step if it comes second; it sees the trained parameters alone:

        class NormFedAdam(NormFedAvg, FedAdam): ...

    Args:
        model: defines which entries are batch norm's, and the shapes and types of all entries; it is not changed.
        policy: a name in `POLICIES` that does not change training, or your own `Policy`.
        enough: smallest fraction of a round's clients that must give a usable reply, as in `Clients.enough`.
        unsampled: what clients without entries of their own (new ones, and those that lost them) get for what stays
            with clients: "initial" values; the "average" of the round's clients, or their "pooled" batch norms, for
            which clients send copies of these entries to the server; or initial ones with statistics "reestimated" on
            the client's own data, which `load_global` then needs.
        whole_replies: clients also send the entries that stay with them, unchanged as received. A strategy of
            Flower that wraps this one, such as differential privacy (`PrivateNorm`), needs that, and gets it.
        aggregation: how one value is made of the clients': a name in `AGGREGATIONS`, or your own `Aggregation`, such
            as `AGGREGATIONS["trimmed"]({"trim": 0.2})`. Another strategy takes the parameters from it.
        send_counts: False weighs all clients alike; `reply_with` then sends no weight and no counters of batches.
        options: options of FedAvg, or of the strategy that takes the server's step.

    Raises:
        UserError: an unknown policy, one that changes how clients train, or one about batch norm for a model without
            it; in a round, fewer than `enough` usable replies, or weights that are all zero. `arrays` then has the
            last global model.
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | Policy = "fedavg_pooled",
        *,
        enough: float = 0.5,
        unsampled: str = "initial",
        whole_replies: bool = False,
        aggregation: str | Aggregation = "mean",
        send_counts: bool = True,
        **options: Any,
    ) -> None:
        own_means = options.get("train_metrics_aggr_fn") or weighted_means
        self._any_evaluation = bool(options.get("evaluate_metrics_aggr_fn"))
        own_scores = options.get("evaluate_metrics_aggr_fn") or weighted_means
        super().__init__(**{**options, "train_metrics_aggr_fn": own_means, "evaluate_metrics_aggr_fn": own_scores})
        if not 0 <= enough <= 1:
            raise UserError(f"enough is {enough}: it is a fraction of a round's clients, from 0 to 1.")
        if unsampled not in UNSAMPLED:
            raise unknown("unsampled", str(unsampled), UNSAMPLED)
        self.policy = check_policy(policy)
        if unsampled == "reestimated" and self.policy.statistics != "local":
            raise UserError(
                f"unsampled is reestimated, and with the policy {name_of(policy)} clients keep no statistics: choose "
                "initial, average or pooled, or a policy such as silobn."
            )
        self.enough, self.aggregation = enough, aggregation_of(aggregation)
        kept = {name for name, reduction in rules(model, self.policy).items() if reduction in KEPT}
        self.home = kept
        """Names of the entries that stay with the clients."""
        self.reductions = rules(model, shared_by_rule(self.policy, unsampled) if kept else self.policy)
        if not send_counts:
            self.reductions |= dict.fromkeys(counters(model), "local")
        self.layers = list(batch_norms(model))
        """The batch norms, by name."""
        self.left_out: dict[int, list[str]] = {}
        """What was wrong with replies that were left out, by round, one sentence each."""
        self.notes: dict[int, list[str]] = {}
        """What was odd in a round, though its replies were used, one sentence each."""
        parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self.buffers = self.reductions.keys() - parameters
        """Names of the entries that are no parameters."""
        self.aside: dict[str, dict[str, Tensor]] = {}
        """Entries that a wrapper has put aside, by the id of the message that they reply to."""
        uncounted = "" if send_counts else self.weighted_by_key
        self._terms = Terms(self.policy, name_of(policy), unsampled, whole_replies, uncounted=uncounted)
        self._global = Global(deepcopy(model.state_dict()))
        self._trained_names = trained_names(model, self.reductions)
        self._train, self._evaluate = Asked(), Asked()
        self._known: set[int] = set()
        """Clients that have trained, by their own word."""
        self._said: set[str] = set()

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_wrong_order(cls, NormFedAvg)

    def initialize_parameters(self, client_manager: object) -> NoReturn:
        """Refuse to be used as a strategy of Flower's older API, whose workflows call this first."""
        raise UserError(
            "NormFedAvg is a strategy of flwr.serverapp, and flwr.server's workflows (DefaultWorkflow, "
            "SecAggPlusWorkflow) take those of flwr.server.strategy alone: call strategy.start(grid, ...), or take "
            "MaskedNorm for secure aggregation."
        )

    def send_whole_replies(self) -> None:
        """Let clients also send the entries that stay with them, as the option `whole_replies` does."""
        self._terms = replace(self._terms, whole=True)

    @property
    def arrays(self) -> ArrayRecord:
        """The last global model, also after a round that failed."""
        return self._global.record(self._global.state, copy=True)

    def sent_as(self, name: str) -> str:
        """Return the name that an entry of the model has in the run's arrays: its place, if they are a list."""
        return self._global.outward(name)

    def summary(self) -> None:
        """Log the strategy's settings and how many batch norms it found."""
        log(INFO, "\t├──> Batch norm: %d layers, found by type", len(self.layers))
        log(INFO, "\t│\t└──affine %s | statistics %s", self.policy.affine, self.policy.statistics)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the round's messages, as FedAvg does.

        Raises:
            UserError: arrays that do not match the model's state; fewer clients than the strategy waits for.
        """
        self._expect(grid, self.min_train_nodes if self.fraction_train else 0)
        if not self._terms.whole and (wrapper := wrapper_of(self)) is not None:
            self._in_wrapper(server_round, wrapper)
        taken = self._taken(server_round, arrays)
        self._terms.put_into(config, self._global.is_part)
        return self._train.remember(super().configure_train(server_round, taken, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return the messages of a round's evaluation, as FedAvg does."""
        self._expect(grid, self.min_evaluate_nodes if self.fraction_evaluate else 0)
        taken = self._taken(server_round, arrays)
        self._terms.put_into(config, self._global.is_part)
        return self._evaluate.remember(super().configure_evaluate(server_round, taken, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global model and the clients' metrics; neither if nobody was asked.

        Raises:
            UserError: fewer than `enough` of the clients gave a usable reply.
        """
        given, asked = self._closed(self._train, replies)
        if not asked:
            return None, None
        usable, reductions = self._usable(server_round, given, asked)
        self._note_homes(server_round, usable, reductions)
        if not any(answer.weight for answer in usable):
            raise UserError(
                f"round {server_round}: the weights '{self.weighted_by_key}' of all {len(usable)} clients are zero, "
                "so there is nothing to average: let clients send how many samples they have trained on."
            )
        stepped, used = server_step(self, NormFedAvg, server_round, usable, self._global, self._trained_names)
        shares = normalised_weights(used, [answer.weight for answer in used])
        if is_robust(self, used, usable) and self.aggregation is WEIGHTED:
            self._note(
                server_round,
                f"{type(self).__name__} bounds what clients can do to parameters, and running statistics are still "
                "their mean: give it an aggregation, such as median",
                key="statistics",
            )
        states = [answer.state for answer in used]
        combined = combine(self._global.state, reductions, states, shares, self.aggregation)
        self._global.state = {**combined, **{name: stepped[name] for name in stepped if name in combined}}
        metrics = self.train_metrics_aggr_fn([answer.content for answer in used], self.weighted_by_key)
        metrics[LEFT_OUT] = asked - len(usable)
        if self.home:
            metrics[LOST] = self._count_lost(server_round, [(one.client, one.word) for one in usable])
            self._known |= {answer.word.client for answer in usable if answer.word}
        return self._global.record(self._global.state), metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the clients' metrics; error replies, and those without a weight, are left out.

        Raises:
            UserError: no client's reply has a weight.
        """
        given, _ = self._closed(self._evaluate, replies)
        contents, wrong = [], []
        words: list[tuple[str, Word | None]] = []
        for client, reply in given:
            try:
                if reply.has_error():
                    raise ValueError(reason(reply))
                if not self._any_evaluation:
                    weight_in(reply.content, self.weighted_by_key)
                contents.append(reply.content)
                words.append((client, word_in(reply.content)))
            except ValueError as error:
                wrong.append(_named(client, str(error)))
        self._report(server_round, wrong)
        if not contents:
            if any(not reply.has_error() for _, reply in given):
                raise UserError(f"round {server_round}: no evaluation can be used ({wrong[0]}).")
            return None
        metrics = self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)
        if self.home:
            metrics[LOST] = self._count_lost(server_round, words)
        return metrics

    def _closed(self, asked: Asked, replies: Iterable[Message]) -> tuple[list[tuple[str, Message]], int]:
        """Return the replies with their clients, and the number of clients asked."""
        given, many = asked.close(replies)
        for _, reply in given:
            if self._terms.uncounted and not reply.has_error():
                without_weight(reply.content, self._terms.uncounted)
        return given, many

    def _in_wrapper(self, server_round: int, wrapper: Strategy) -> None:
        """Serve a strategy that wraps this one: clients send every entry."""
        self.send_whole_replies()
        self._note(
            server_round,
            f"{type(wrapper).__name__} clips and changes running statistics and counters like parameters: put it "
            "into syncnorm.federated.PrivateNorm, which has a rule for them",
            key="wrapper",
        )

    def _expect(self, grid: Grid, sampled: int) -> None:
        needed = max(sampled, self.min_available_nodes if sampled else 0)
        if isinstance(grid, CohortGrid) and grid.num_clients < needed:
            raise too_few_nodes(grid.num_clients, needed)

    def _taken(self, server_round: int, arrays: ArrayRecord) -> ArrayRecord:
        """Return the arrays of a round in the model's types and with variances from 0."""
        taken, floored = self._global.take(server_round, arrays)
        if floored:
            self._note(
                server_round,
                f"the arrays have negative variances in '{floored[0]}' ({len(floored)} entries), from added noise "
                "perhaps: clients get 0 in their place",
            )
        return taken

    def _usable(
        self, server_round: int, given: Sequence[tuple[str, Message]], asked: int
    ) -> tuple[list[Answer], dict[str, Any]]:
        """Return the usable answers, and the reductions of the entries that they hold."""
        answers, wrong = [], []
        for client, reply in given:
            try:
                answer = answer_of(client, reply, self.weighted_by_key, self.arrayrecord_key)
                answer.state.update(self.aside.get(reply.metadata.reply_to_message_id, {}))
                answers.append(replace(answer, state=self._global.inward(answer.state)))
            except Exception as error:  # a bad reply must not end the run
                wrong.append((client, str(error)))
        state = self._global.state
        reductions = sent_by_most(answers, {name: self.reductions[name] for name in state})
        usable, unfit = fitting(answers, state, reductions)
        order = [client for client, _ in given]
        sentences = [_named(*one) for one in sorted([*wrong, *unfit], key=lambda one: order.index(one[0]))]
        if missing := asked - len(given):
            sentences.append(f"{missing} of {asked} clients did not reply")
        self._report(server_round, sentences)
        if len(usable) < max(1, self.enough * asked):
            raise UserError(
                f"round {server_round}: {asked - len(usable)} of {asked} clients gave no usable reply, and enough is "
                f"{self.enough:g} ({sentences[0].rstrip('.')}). The last global model is in the strategy's `arrays`."
            )
        if not reductions:
            raise UserError(
                f"round {server_round}: no entry of the model came from half of the {len(usable)} clients: let them "
                "send its state. The last global model is in the strategy's `arrays`."
            )
        return usable, {name: reductions.get(name, "local") for name in state}

    def _note_homes(self, server_round: int, usable: Sequence[Answer], reductions: Mapping[str, Any]) -> None:
        """Say which entries nobody sent, and which came though the policy keeps them with the clients."""
        name, state = self._terms.name, self._global.state
        shared = [entry for entry in state if self.reductions[entry] not in KEPT]
        if unsent := [entry for entry in shared if reductions[entry] in KEPT]:
            self._note(
                server_round,
                f"most clients sent no '{unsent[0]}' ({len(unsent)} entries): these stay as they are",
                key="unsent",
            )
        if self.home.isdisjoint(shared):
            # Whole replies by `reply_with` can only have been changed by a mod, such as noise.
            own = [one for one in usable if not (self._terms.whole and one.word)]
            sent, fate = {one.client: changed(one, state, sorted(self.home)) for one in own}, "thrown away"
        else:
            strangers = [one for one in usable if one.word is None]
            sent, fate = {one.client: sorted(self.home & one.state.keys()) for one in strangers}, "averaged alone"
        sent = {client: entries for client, entries in sent.items() if entries}
        if sent:
            client, entries = next(iter(sent.items()))
            self._note(
                server_round,
                f"{len(sent)} of {len(usable)} clients ({client} first) sent '{entries[0]}' ({len(entries)} entries)"
                f", which the policy {name} keeps with them: it is {fate}. Call load_global and reply_with in the "
                "ClientApp, which then keeps it; or choose a policy that shares it, such as fedavg_pooled",
                key="home",
            )

    def _count_lost(self, server_round: int, words: Iterable[tuple[str, Word | None]]) -> int:
        lost = [(client, word) for client, word in words if word and not word.own and word.client in self._known]
        for client, word in lost:
            self._note(
                server_round,
                f"{client} (partition {word.client}) has lost the entries that stay with it, and got "
                f"{_SUBSTITUTES[self._terms.unsampled]} in their place",
            )
        return len(lost)

    def _note(self, server_round: int, sentence: str, key: str | None = None) -> None:
        if key in self._said:
            return
        self._said |= {key} if key else set()
        self.notes.setdefault(server_round, []).append(sentence)
        log(WARNING, "round %d: %s", server_round, sentence)

    def _report(self, server_round: int, wrong: Sequence[str]) -> None:
        if wrong:
            self.left_out.setdefault(server_round, []).extend(wrong)
        for sentence in wrong:
            log(WARNING, "round %d, left out: %s", server_round, sentence)


_SUBSTITUTES = {
    "initial": "the initial ones",
    "average": "the clients' average",
    "pooled": "the clients' pooled batch norms",
    "reestimated": "the initial ones with statistics of its own data",
}


def _named(client: str, why: str) -> str:
    return f"{client}: {why.removeprefix(client).strip()}"
