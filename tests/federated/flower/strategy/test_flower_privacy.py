"""NormFedAvg with Flower's differential privacy and secure aggregation."""

from typing import Any

import pytest
import torch
from flower_apps import SIZES, Keeping, data, fit, make_model
from flwr.app import Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
from flwr.serverapp import strategy as strategies
from torch import Tensor

from syncnorm.errors import UserError
from syncnorm.federated import CohortGrid, NormFedAvg, PrivateNorm, load_global, reply_with

ALL = len(SIZES)


def client(mods: list[Any] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train(mods=mods or [])
    def train(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context)
        fit(model, partition)
        return reply_with(model, message, context, {"num-examples": len(data(partition)[0])})

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        model, partition = make_model(), int(context.node_config["partition-id"])
        load_global(model, message, context)
        x, y = data(partition)
        loss = torch.nn.functional.cross_entropy(model.eval()(x), y)
        return reply_with(model, message, context, {"num-examples": len(x), "loss": loss.item()})

    return app


def fixed(strategy: NormFedAvg, noise: float = 0.0, norm: float = 1e6) -> Any:
    return strategies.DifferentialPrivacyServerSideFixedClipping(strategy, noise, norm, ALL)


def run(strategy: Any, app: ClientApp | None = None, rounds: int = 3) -> Keeping:
    server = Keeping(lambda: strategy, rounds=rounds)
    CohortGrid(app or client(), ALL, seed=0).run_app(server)
    return server


@pytest.mark.parametrize("policy", ["fedavg", "fedavg_pooled", "fedbn", "silobn"])
@pytest.mark.parametrize("variances", ["floor", "exact"])
def test_without_clipping_and_noise_nothing_changes(policy: str, variances: Any) -> None:
    private = run(PrivateNorm(fixed(NormFedAvg(make_model(), policy)), variances))
    plain = run(NormFedAvg(make_model(), policy))
    for name, value in plain.state.items():
        assert private.state[name].dtype == value.dtype
        torch.testing.assert_close(private.state[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", ["fedavg_pooled", "fedbn", "silobn"])
@pytest.mark.parametrize("variances", ["floor", "exact"])
def test_no_variance_is_negative_and_what_stays_home_gets_no_noise(policy: str, variances: Any) -> None:
    torch.manual_seed(0)
    strategy = NormFedAvg(make_model(), policy)
    server = run(PrivateNorm(fixed(strategy, noise=2.0, norm=5.0), variances))
    initial = make_model().state_dict()
    assert all(server.state[name].ge(0).all() for name in server.state if name.endswith("running_var"))
    assert all(torch.equal(server.state[name], initial[name]) for name in strategy.home)
    losses = [server.result.evaluate_metrics_clientapp[round_]["loss"] for round_ in (1, 2, 3)]
    assert all(loss == loss for loss in losses)
    if variances == "exact" and policy == "fedavg_pooled":
        assert server.state["1.num_batches_tracked"] == 6


def test_exact_statistics_are_those_of_the_clients_and_cost_no_clipping() -> None:
    norm = 0.01
    server = run(PrivateNorm(fixed(NormFedAvg(make_model(), "fedavg"), norm=norm), "exact"), rounds=1)
    initial, plain = make_model().state_dict(), run(NormFedAvg(make_model(), "fedavg"), rounds=1)
    for name, value in plain.state.items():
        if "running" in name:
            torch.testing.assert_close(server.state[name], value, rtol=1e-9, atol=1e-12)
    names = [name for name, _ in make_model().named_parameters()]
    updates: dict[str, Tensor] = dict.fromkeys(names, torch.tensor(0.0))
    for partition in range(ALL):
        model = make_model()
        fit(model, partition)
        change = {name: value.detach() - initial[name] for name, value in model.named_parameters()}
        length = sum(value.square().sum() for value in change.values()).sqrt()
        share = SIZES[partition] / sum(SIZES)
        updates = {name: updates[name] + share * change[name] * min(1, norm / length) for name in names}
    for name in names:
        torch.testing.assert_close(server.state[name], initial[name] + updates[name], rtol=1e-6, atol=1e-9)


def test_flowers_wrapper_alone_works_and_names_the_remedy() -> None:
    at_client = strategies.DifferentialPrivacyClientSideFixedClipping
    for policy, wrap, app in (
        ("fedbn", fixed, client()),
        ("silobn", lambda strategy: at_client(strategy, 0.0, 1e6, ALL), client([fixedclipping_mod])),
    ):
        strategy = NormFedAvg(make_model(), policy)
        server = run(wrap(strategy), app)
        assert "PrivateNorm" in strategy.notes[1][0]
        assert not strategy.left_out
        plain = run(NormFedAvg(make_model(), policy))
        for name in plain.state.keys() - strategy.home:
            torch.testing.assert_close(server.state[name], plain.state[name], rtol=1e-9, atol=1e-12)


def test_mistakes_are_sentences() -> None:
    with pytest.raises(UserError, match="PrivateNorm got NormFedAvg"):
        PrivateNorm(NormFedAvg(make_model()))
    with pytest.raises(UserError, match="did you mean 'exact'"):
        PrivateNorm(fixed(NormFedAvg(make_model())), "exat")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["silobn", "fedbn"])
def test_local_noise_leaves_out_what_stays_home(policy: str) -> None:
    strategy = NormFedAvg(make_model(), policy, whole_replies=True)
    run(strategy, client([LocalDpMod(1.0, 1.0, 10.0, 1e-5)]))
    found, initial = strategy.arrays.to_torch_state_dict(), make_model().state_dict()
    assert (strategy.left_out, strategy.notes) == ({}, {})
    assert all(torch.equal(found[name], initial[name]) for name in strategy.home)
    assert not torch.equal(found["0.weight"], initial["0.weight"])


@pytest.mark.parametrize(
    ("policy", "mod", "said"),
    [
        ("fedavg", LocalDpMod(1.0, 1.0, 10.0, 1e-5), "negative variance: noise of a mod .* whole_replies=True"),
        ("silobn", LocalDpMod(1.0, 1.0, 10.0, 1e-5), "LocalDpMod expects .*: NormFedAvg.*whole_replies=True"),
        ("fedavg", secaggplus_mod, "secure aggregation shows the server a sum .*leave secaggplus_mod out"),
    ],
    ids=["noise", "a part", "secure aggregation"],
)
def test_what_a_mod_breaks_is_said_with_a_remedy(policy: str, mod: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(NormFedAvg(make_model(), policy, enough=1.0), client([mod]))


def test_the_workflow_of_secure_aggregation_is_refused() -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context, ServerConfig(num_rounds=1), strategy=NormFedAvg(make_model()))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"SecAggPlusWorkflow.* call strategy\.start"):
        DefaultWorkflow(fit_workflow=SecAggPlusWorkflow(3, 2))(CohortGrid(client(), num_clients=3), legacy)
