"""Policies under Flower's secure aggregation give what they give without it, up to the protocol's rounding."""

from typing import Any

import pytest
import torch
from flower_apps import SIZES, data, fit, make_model
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common import EvaluateIns
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, MaskedNorm, NormFedAvg, load_global, masked_mod, reply_with
from syncnorm.federated.flower.strategy.masked import from_means, to_summands

ALL, HEAVIEST, CLIP, RANGE = len(SIZES), 25, 8.0, 2**22
ROUNDING = ALL * 2 * CLIP / RANGE * HEAVIEST / sum(SIZES)
"""Of each client's weighted vector by at most a step, and of a sum that is divided by the clients' weights."""


def client(mods: list[Any], broken: int | None = None, far: float = 0.0) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        if partition == broken:
            raise OSError("disk full")
        load_global(model, message, context)
        fit(model, partition)
        if partition == 0:
            with torch.no_grad():
                next(model.parameters()).add_(far)
        return reply_with(model, message, context, {"num-examples": len(data(partition)[0]), "secret": 7.0})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context)
        x, y = data(partition)
        loss = torch.nn.functional.cross_entropy(model.eval()(x), y)
        return reply_with(model, message, context, {"num-examples": len(x), "loss": loss.item(), "of": 1.0})

    return app


class Listening(CohortGrid):
    """A grid that keeps what the server sees of training."""

    heard: list[Message]

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies."""
        replies = super().send_and_receive(messages, timeout=timeout)
        self.heard = [*getattr(self, "heard", []), *(one for one in replies if one.metadata.message_type == "train")]
        return replies


def masked(policy: str, rounds: int = 1, **more: Any) -> tuple[MaskedNorm, LegacyContext, Listening]:
    options = dict(min_fit_clients=ALL, min_available_clients=ALL, min_evaluate_clients=ALL)
    strategy = MaskedNorm(make_model(), policy, **options)
    grid = Listening(client([masked_mod], **more), ALL, seed=0)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context, ServerConfig(num_rounds=rounds), strategy)
    workflow = SecAggPlusWorkflow(5, 3, max_weight=HEAVIEST, clipping_range=CLIP, quantization_range=RANGE)
    DefaultWorkflow(fit_workflow=workflow)(grid, legacy)
    return strategy, legacy, grid


def plain(policy: str, rounds: int = 1) -> dict[str, Tensor]:
    grid = CohortGrid(client([]), ALL, seed=0)
    strategy = NormFedAvg(make_model(), policy, fraction_evaluate=0.0)
    strategy.start(grid, ArrayRecord(make_model().state_dict()), num_rounds=rounds)
    return dict(strategy.arrays.to_torch_state_dict())


@pytest.mark.parametrize("policy", ["fedavg", "fedavg_pooled", "silobn", "fedbn"])
def test_a_round_under_masks_is_the_round_without(policy: str) -> None:
    strategy, _, _ = masked(policy)
    found, expected = dict(strategy.arrays.to_torch_state_dict()), plain(policy)
    initial = make_model().state_dict()
    assert strategy.rounds == [1]
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        if name.endswith("num_batches_tracked"):
            assert torch.equal(found[name], initial[name])  # a maximum is no sum
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=4 * ROUNDING)
    if policy == "fedavg_pooled":  # the spread of the clients' means is in it
        apart = (expected["1.running_var"] - plain("fedavg")["1.running_var"]).abs().max()
        assert apart > 1000 * ROUNDING


def test_rounds_follow_each_other_and_are_evaluated() -> None:
    strategy, legacy, _ = masked("fedbn", rounds=3)
    expected = plain("fedbn", rounds=3)
    found = dict(strategy.arrays.to_torch_state_dict())
    assert strategy.rounds == [1, 2, 3]
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)
    assert [round_ for round_, _ in legacy.history.losses_distributed] == [1, 2, 3]


def test_the_server_sees_no_client_by_itself() -> None:
    _, _, grid = masked("fedavg_pooled")
    told = [one.content for one in grid.heard if one.has_content()]
    assert told
    for content in told:
        assert not any(len(record) for record in content.values() if isinstance(record, ArrayRecord))
        counts = [dict(record) for record in content.values() if isinstance(record, MetricRecord)]
        assert counts in ([], [{"num_examples": 1}])
        assert "secret" not in str(content)


def test_a_client_that_fails_in_the_middle_is_left_out_of_the_sum() -> None:
    strategy, _, _ = masked("fedavg_pooled", broken=4)
    assert strategy.rounds == [1]
    others = [partition for partition in range(ALL) if partition != 4]
    means, known = [], make_model().state_dict()
    for partition in others:
        model = make_model()
        fit(model, partition)
        means.append(model.state_dict()["1.running_mean"])
    weights = torch.tensor([SIZES[partition] for partition in others], dtype=torch.float64)
    expected = (weights[:, None] / weights.sum() * torch.stack(means)).sum(0)
    torch.testing.assert_close(strategy.arrays.to_torch_state_dict()["1.running_mean"], expected, rtol=0, atol=1e-4)
    assert not torch.equal(expected, known["1.running_mean"])


def test_what_the_protocol_would_clip_leaves_the_client_out_and_says_so() -> None:
    strategy, _, grid = masked("fedavg", far=100.0)
    assert strategy.rounds == [1]
    (error,) = [one.error.reason for one in grid.heard if one.has_error()]
    assert "beyond the clipping_range 8 of SecAggPlusWorkflow: raise it" in error


def test_pooled_statistics_are_those_of_all_samples_together() -> None:
    """The sums against the law of total variance on the samples themselves, in float64."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.randn(size, 3, generator=generator, dtype=torch.float64) * (k + 1) + k for k, size in enumerate(SIZES)
    ]
    known = {"running_mean": torch.full((3,), 0.7), "running_var": torch.full((3,), 2.0)}
    pairs = [("running_mean", "running_var")]
    vectors = [
        to_summands({"running_mean": x.mean(0), "running_var": x.var(0, correction=0)}, known, list(known), pairs)
        for x in parts
    ]
    shares = torch.tensor(SIZES, dtype=torch.float64) / sum(SIZES)
    means = {name: sum(share * one[name] for share, one in zip(shares, vectors, strict=True)) for name in known}
    wide = {name: value.double() for name, value in known.items()}
    found, every = from_means(means, wide, pairs), torch.cat(parts)  # type: ignore[arg-type]
    torch.testing.assert_close(found["running_mean"], every.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found["running_var"], every.var(0, correction=0), rtol=1e-12, atol=1e-12)
    gone = from_means({**means, "running_var": means["running_var"] - 1e3}, wide, pairs)  # type: ignore[arg-type,operator]
    assert gone["running_var"].eq(0).all()


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="fixbn also changes how clients train"):
        MaskedNorm(make_model(), "fixbn")
    strategy = MaskedNorm(make_model(), "fedavg")
    with pytest.raises(UserError, match="use it with SecAggPlusWorkflow and masked_mod"):
        strategy.aggregate_fit(1, [(None, NoSum()), (None, NoSum())], [])
    (reply,) = CohortGrid(client([masked_mod]), 1).send_and_receive([Message(from_another_server(), 1, "evaluate")])
    assert "masked_mod is for a server with MaskedNorm" in str(reply.error.reason)


class NoSum:
    """A client's own result."""

    def __init__(self) -> None:
        self.parameters = MaskedNorm(make_model(), "fedavg").initialize_parameters(None)


def from_another_server() -> RecordDict:
    """Return what Flower's own FedAvg of the older API sends."""
    parameters = NoSum().parameters
    return compat.evaluateins_to_recorddict(EvaluateIns(parameters, {}), keep_input=True)
