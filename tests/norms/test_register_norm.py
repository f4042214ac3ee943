"""A norm of somebody else's is served like one of ours."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncnorm
from syncnorm import SyncBatchNorm, convert, fold, fold_report, make_norm, register_norm, revert
from syncnorm.config import Clients, Data, Devices, Domains, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.norms import FullNorm, norm_names, norm_options, norm_spec
from syncnorm.norms.spec import NO_FOLD
from syncnorm.training.ranks.virtual_ranks import ModelCopies, RanksAsChannels, on_virtual_ranks, rank_0

pytestmark = pytest.mark.usefixtures("registries")

SHORT = Run(
    data=Data("digits", train_limit=160, test_limit=60),
    model_options={"width": 4},
    norm=Norm("mine", {"gain": 0.5}),
    optim=Optim(epochs=1, lr=0.01),
    precision="float64",
)


class Mine(nn.Module):
    """Centres by the batch, and in evaluation by a running mean that it assigns anew: no batch norm by type."""

    def __init__(self, num_features: int, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        self.weight = nn.Parameter(torch.ones(num_features))
        self.register_buffer("running_mean", torch.zeros(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        if self.training:
            mean = x.mean((0, 2, 3), keepdim=True)
            self.running_mean = 0.5 * self.running_mean + 0.5 * mean.detach()
        return self.gain * (x - mean) * self.weight.view(1, -1, 1, 1)


class MineByChannel(nn.BatchNorm2d):
    """A subclass of torch's, with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def small_model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()


def registered(**facts: Any) -> None:
    register_norm("mine", **facts)(Mine)


def test_it_is_built_and_checked_by_name() -> None:
    registered()
    assert "mine" in norm_names()
    assert norm_options("mine") == ["gain"]
    assert isinstance(make_norm("mine", 3, gain=2.0), Mine)
    with pytest.raises(UserError, match="norm 'mine': unknown option 'gian': did you mean 'gain'"):
        make_norm("mine", 3, gian=2.0)
    with pytest.raises(UserError, match="norm 'mine': gain is 'high': it must be a number"):
        make_norm("mine", 3, gain="high")
    with pytest.raises(UserError, match="unknown norm 'mines': did you mean 'mine'"):
        make_norm("mines", 3)


def test_a_function_may_build_it_and_take_any_option() -> None:
    @register_norm("built")
    def built(num_features: int, **options: float) -> nn.Module:
        return Mine(num_features, **options)

    assert make_norm("built", 3, gain=3.0).gain == 3.0


def test_convert_and_back_leaves_the_model_as_it_was() -> None:
    registered()
    model = small_model().eval()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    before, weight, mean = model(x), model[1].weight, model[1].running_mean.clone()
    model = convert(model, "mine", gain=0.5)
    assert isinstance(model[1], Mine)
    assert model[1].weight is weight
    assert model[1].running_mean.shape == (1, 4, 1, 1)  # not the (4,) of batch norm, which would go along the width
    assert {tensor.dtype for tensor in (*model.parameters(), *model.buffers())} == {torch.float64}
    assert not torch.allclose(model(x), before)
    model = revert(model)
    assert torch.equal(model(x), before)
    assert torch.equal(model[1].running_mean, mean)


def test_it_is_not_folded_unless_its_row_says_how() -> None:
    registered()
    with pytest.warns(UserWarning, match="no torch.nn batch norm"):
        model = convert(convert(small_model(), "mine"), "mine")
    assert set(fold_report(model).left.values()) == {NO_FOLD}
    register_norm("mine", fold="it is random")(Mine)
    assert set(fold_report(model).left.values()) == {"it is random"}


def as_affine(layer: Mine) -> tuple[Tensor, Tensor]:
    scale = layer.gain * layer.weight.double()
    return scale, -layer.running_mean.double().flatten() * scale


@pytest.mark.parametrize("by_function", [True, False])
def test_it_folds_as_its_row_says(by_function: bool) -> None:
    def build(num_features: int, gain: float = 1.0) -> nn.Module:
        return Mine(num_features, gain)

    register_norm("mine", fold=as_affine)(build if by_function else Mine)
    model = convert(small_model(), "mine", gain=0.7)
    x = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    model(x)
    expected = model.eval()(x)
    folded = fold(copy.deepcopy(model))
    assert not any(isinstance(module, Mine) for module in folded.modules())
    torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("by_channel", [False, True])
def test_virtual_ranks_are_as_many_models(by_channel: bool) -> None:
    register_norm("mine", by_channel=by_channel)(MineByChannel)
    model = convert(small_model(), "mine")
    devices = [copy.deepcopy(model) for _ in range(3)]
    ranks = on_virtual_ranks(model, "mine", 3)
    assert isinstance(ranks, ModelCopies) != by_channel
    assert any(isinstance(module, RanksAsChannels) for module in ranks.modules()) == by_channel
    x = torch.randn(12, 2, 8, 8, dtype=torch.float64)
    expected = torch.stack([device(x[rank::3]) for rank, device in enumerate(devices)], 1).flatten(0, 1)
    torch.testing.assert_close(ranks(x), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(rank_0(ranks).state_dict(), devices[0].state_dict(), rtol=1e-10, atol=1e-10)


def test_a_row_that_promises_by_channel_in_vain_is_refused() -> None:
    registered(by_channel=True)
    with pytest.raises(UserError, match="its layer has no attribute num_features"):
        on_virtual_ranks(convert(small_model(), "mine"), "mine", 2)
    with pytest.raises(UserError, match="its layer has no attribute num_features"):
        syncnorm.worlds.check(replace(SHORT, world=Devices(ranks=2, per_device_batch=4)))

    class Wide(Mine):
        def __init__(self, num_features: int) -> None:
            super().__init__(num_features)
            self.num_features = num_features

    register_norm("wide", by_channel=True)(Wide)
    with pytest.raises(UserError, match=re.escape("'running_mean' of shape (1, 4, 1, 1) for 4 channels")):
        on_virtual_ranks(convert(small_model(), "wide"), "wide", 2)


def test_a_run_of_devices_has_it() -> None:
    registered()
    result = syncnorm.fit(replace(SHORT, world=Devices(ranks=4, per_device_batch=4)))
    assert result.metrics["train_loss"] != syncnorm.fit(replace(SHORT, world=Devices(1, 16))).metrics["train_loss"]
    with pytest.raises(UserError, match="no way to pool"):
        syncnorm.fit(replace(SHORT, world=Devices(ranks=4, per_device_batch=4, buffers="pooled")))


def test_both_engines_of_clients_train_it_alike() -> None:
    """Also what evaluates it: a running mean that its forward assigns anew, which vmap alone would lose."""
    registered()
    world = Clients(count=3, rounds=2, batch=16)
    loop, cohort = (syncnorm.fit(replace(SHORT, world=replace(world, engine=name))) for name in ("loop", "cohort"))
    assert cohort.environment["engine"] == "cohort"
    for name in ("loss", "train_loss", "accuracy"):
        assert cohort.metrics[name] == pytest.approx(loop.metrics[name], rel=1e-9), name


def test_what_the_batched_engine_cannot_run_is_trained_one_by_one() -> None:
    class Branching(Mine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else 2 * super().forward(x)

    register_norm("mine")(Branching)
    run = replace(SHORT, world=Clients(count=2, rounds=1, batch=16, engine="cohort"))
    with pytest.warns(UserWarning, match="could not train in one batched step"):
        batched = syncnorm.fit(run)
    alone = syncnorm.fit(replace(run, world=replace(run.world, engine="loop")))
    assert batched.metrics["loss"] == alone.metrics["loss"]


def test_a_run_of_domains_has_it() -> None:
    registered()
    run = replace(SHORT, world=Domains(("digits", "digits-inverted"), unseen=("digits-inverted",)))
    assert 0 < syncnorm.fit(run).metrics["loss"] < 100
    with pytest.raises(UserError, match="the model has none"):
        syncnorm.fit(replace(run, world=replace(run.world, adapt="prediction")))
    register_norm("adapting", evaluates="corrected")(MineByChannel)
    with pytest.raises(UserError, match="norm 'adapting' adapts at test time itself"):
        syncnorm.fit(replace(run, norm=Norm("adapting"), world=replace(run.world, adapt="prediction")))


@pytest.mark.parametrize(
    ("world", "batch", "domains"),
    [
        (Devices(ranks=2, per_device_batch=8), 8, 0),
        (Clients(count=2, rounds=1, batch=16, engine="loop"), 16, 0),
        (Domains(("digits", "digits-inverted"), batch=12), 12, 2),
    ],
)
def test_a_world_fills_in_what_the_row_asks_for(world: Any, batch: int, domains: int) -> None:
    told = []

    @register_norm("asking", from_world={"size": "batch", "groups": "domains"})
    class Asking(nn.BatchNorm2d):
        def __init__(self, num_features: int, size: int = 0, groups: int = 0) -> None:
            super().__init__(num_features)
            told.append((size, groups))

    syncnorm.worlds.check(replace(SHORT, norm=Norm("asking"), world=world))
    assert set(told) == {(batch, domains)}
    told.clear()
    syncnorm.worlds.check(replace(SHORT, norm=Norm("asking", {"size": 3}), world=world))
    assert set(told) == {(3, domains)}


def test_a_norm_over_ranks_has_the_whole_batch_and_is_no_clients() -> None:
    @register_norm("whole", over_ranks=True)
    class Whole(SyncBatchNorm):
        pass

    ours, theirs = (replace(SHORT, norm=Norm(name), world=Devices(4, 4)) for name in ("sync_bn", "whole"))
    assert syncnorm.fit(theirs).metrics == syncnorm.fit(ours).metrics
    with pytest.raises(UserError, match="norm whole synchronises ranks, and clients are none"):
        syncnorm.fit(replace(theirs, world=Clients(count=2, rounds=1)))


def test_a_norm_whose_options_say_whether_ranks_share() -> None:
    @register_norm("shared", over_ranks="sync")
    class Shared(FullNorm):
        pass

    ours, theirs = (
        replace(SHORT, norm=Norm(name, {"sync": True}), world=Devices(4, 4)) for name in ("full_norm", "shared")
    )
    assert syncnorm.fit(theirs).metrics == syncnorm.fit(ours).metrics

    @register_norm("apart")
    class Apart(nn.BatchNorm2d):
        pass

    with pytest.raises(
        UserError, match=r"'apart' keeps statistics by rank, since its row does not .*: leave sync out"
    ):
        syncnorm.make_norm("apart", 4, sync=True)


class NoModule:
    def __init__(self, num_features: int) -> None: ...


class NoFeatures(nn.Module):
    def __init__(self, channels: int) -> None: ...


@pytest.mark.parametrize(
    ("made", "facts", "sentence"),
    [
        (NoModule, {}, "norm 'mine': the class NoModule is no torch.nn.Module"),
        (NoFeatures, {}, "NoFeatures(channels: int) -> None does not take num_features"),
        (lambda: None, {}, "does not take num_features"),
        (42, {}, "norm 'mine' is an int: register what builds a torch.nn.Module"),
        (nn.BatchNorm2d(3), {}, "norm 'mine' is a BatchNorm2d: register what builds a torch.nn.Module"),
        (Mine, {"over_ranks": "always"}, "norm 'mine': over_ranks is 'always': it must be True, False or 'sync'"),
        (Mine, {"over_ranks": "sync"}, "over_ranks='sync' needs the option 'sync', which Mine lacks"),
        (Mine, {"by_channel": "yes"}, "norm 'mine': by_channel is 'yes': it must be True or False"),
        (Mine, {"evaluates": "runing"}, "did you mean 'running'?"),
        (Mine, {"from_world": {"gain": "clients"}}, "unknown norm 'mine': from_world 'clients'"),
        (Mine, {"from_world": {"size": "batch"}}, "from_world names the option 'size', which Mine does not have"),
        (Mine, {"fold": 3}, "norm 'mine': fold is 3"),
    ],
)
def test_what_cannot_be_registered_gets_a_sentence(made: Any, facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        register_norm("mine", **facts)(made)
    assert "mine" not in norm_names()


def test_names_are_taken_once_and_asked_for() -> None:
    with pytest.raises(UserError, match="norm 'bn' is registered already, by syncnorm itself"):
        register_norm("bn")(Mine)
    with pytest.raises(UserError, match=re.escape('register_norm needs a name: write @register_norm("mine")')):
        register_norm(Mine)  # type: ignore[arg-type]


def test_a_layer_that_fails_names_its_file_and_line() -> None:
    def broken(num_features: int) -> nn.Module:
        raise KeyError("gone")

    register_norm("broken")(broken)
    with pytest.raises(UserError, match=r"'broken' for 3 channels with no options: KeyError: .*\(test_register_norm"):
        make_norm("broken", 3)
    register_norm("answer")(lambda num_features: 42)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"norm 'answer' returned an int, not a torch.nn.Module"):
        make_norm("answer", 3)


def test_convert_warns_of_a_model_that_it_leaves_as_it_is() -> None:
    with pytest.warns(UserWarning, match="the model has no batch norm that 'gn' could replace"):
        convert(nn.Sequential(nn.Linear(2, 2)), "gn")


def test_facts_stand_in_the_row() -> None:
    registered(sees_batch=False, evaluates="sample")
    spec = norm_spec("mine")
    assert (spec.layer, spec.sees_batch, spec.evaluates, spec.side) == (Mine, False, "sample", "activations")
