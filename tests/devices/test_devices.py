import copy
import warnings
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from ranks import ok, run_ranks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from syncnorm import SyncBatchNorm
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.errors import UserError
from syncnorm.norms import GroupNorm
from syncnorm.training import Classifier, SyncNorm, fit
from syncnorm.training.lightning.classifier import learning_rate, share_of_batch
from syncnorm.worlds import check

SHORT = Run(
    data=Data("digits", train_limit=160, test_limit=60),
    model_options={"width": 4},
    world=Devices(ranks=4, per_device_batch=4),
    optim=Optim(epochs=2),
)


def one_position(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A model whose norm sees a single position."""
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(shape[0], 4), nn.BatchNorm1d(4), nn.Linear(4, classes))


def without_norm(classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """A model that has no batch norm to convert."""
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def test_a_run_is_the_same_twice_and_says_what_evaluated_it() -> None:
    first, second = fit(SHORT), fit(SHORT)
    assert first.metrics == second.metrics
    assert first.history == second.history
    assert len(first.history["train_loss"]) == 2
    assert first.metrics["accuracy"] == first.metrics["accuracy_rank0"]
    assert first.evaluated_by == "own (rank 0)"
    pooled = fit(replace(SHORT, world=replace(SHORT.world, buffers="pooled")))
    assert pooled.evaluated_by == "pooled (all ranks)"
    assert pooled.metrics["accuracy"] == pooled.metrics["accuracy_pooled"] == first.metrics["accuracy_pooled"]
    assert pooled.run_id != first.run_id


@pytest.mark.parametrize(("norm", "values"), [("bn", 4), ("sync_bn", 16), ("gn", None)])
def test_a_row_has_the_fewest_values_per_channel_that_share_statistics(norm: str, values: int | None) -> None:
    run = replace(SHORT, norm=Norm(norm), model="strided_cnn", model_options={"width": 4})
    assert fit(run).metrics.get("values_per_channel") == values, "8x8 images: the last of 4 layers has one position"


@pytest.mark.parametrize(
    ("norm", "by"),
    [("sync_bn", "shared (all ranks)"), ("gn", "none"), ("none", "none"), ("ghost_bn", "own (rank 0)")],
)
def test_every_norm_runs(norm: str, by: str) -> None:
    options = {"virtual_ranks": 2} if norm == "ghost_bn" else {}
    result = fit(replace(SHORT, norm=Norm(norm, options)))
    assert result.evaluated_by == by
    assert 0 <= result.metrics["accuracy"] <= 1


def test_adding_a_seed_changes_the_run_and_nothing_global() -> None:
    before = torch.get_rng_state()
    check(SHORT)
    assert torch.equal(torch.get_rng_state(), before)
    assert fit(SHORT).metrics != fit(replace(SHORT, seed=1)).metrics


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (replace(SHORT, norm=Norm("bnn")), "unknown norm 'bnn': did you mean 'bn'?"),
        (replace(SHORT, norm=Norm("gn", {"group": 2})), "did you mean 'groups'?"),
        (replace(SHORT, model="mpl"), "unknown model 'mpl': did you mean 'mlp'?"),
        (replace(SHORT, data=Data("digit")), "did you mean 'digits'?"),
        (replace(SHORT, optim=Optim(lr=-1.0)), "optim.lr is -1.0: it must be above 0 and finite."),
        (replace(SHORT, optim=Optim(lr=float("inf"))), "optim.lr is inf: it must be above 0 and finite."),
        (replace(SHORT, world=Devices(global_batch=30, per_device_batch=4)), "make it a multiple"),
        (replace(SHORT, world=Devices(4, global_batch=30)), "over 4 ranks: make it a multiple, such as 32."),
        (replace(SHORT, world=Devices(ranks=64, per_device_batch=4)), "fewer than one batch of 4"),
        (replace(SHORT, world=replace(SHORT.world, skew=120)), "world.skew is 120: it must be from 0 to 100."),
        (replace(SHORT, world=Devices(1, 4, skew=200)), "world.skew is 200: it must be from 0 to 100."),
        (
            replace(SHORT, model="test_devices:one_position", model_options={}, world=Devices(2, 1)),
            "layer '2' of model 'test_devices:one_position' would get one value per channel on each device",
        ),
        (
            replace(SHORT, model="test_devices:without_norm", model_options={}, norm=Norm("gn")),
            "has no batch norm to replace by 'gn'",
        ),
        (replace(SHORT, model="mlp", model_options={}, norm=Norm("in")), "one value per channel and sample"),
        (replace(SHORT, data=replace(SHORT.data, size=8), model="test_models:my_model", model_options={}), ""),
    ],
)
def test_mistakes_are_found_before_training(run: Run, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl.Trainer, "fit", lambda *_, **__: pytest.fail("training started"))
    if not sentence:
        check(run)
        return
    with pytest.raises(UserError) as caught:
        fit(run)
    assert sentence in str(caught.value)


def test_a_world_size_that_does_not_match_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="needs 4 ranks and was started with 3: use torchrun --nproc-per-node 4"):
        fit(replace(SHORT, world=replace(SHORT.world, engine="torchrun")))


def test_weighting_the_loss_gives_the_gradient_of_the_global_batch() -> None:
    """With 5, 2 and 1 samples, the mean of ranks' weighted gradients is the whole batch's; unweighted it is not."""
    x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double()
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    def mean_gradient(weighting: str) -> list[torch.Tensor]:
        def work(rank: int) -> list[torch.Tensor]:
            mine = slice(*[(0, 5), (5, 7), (7, 8)][rank])
            classifier = Classifier(copy.deepcopy(model), loss_weighting=weighting)
            loss = classifier.training_step((x[mine], y[mine]), 0)
            return list(torch.autograd.grad(loss, list(classifier.model.parameters())))

        return [torch.stack(grads).mean(0) for grads in zip(*ok(run_ranks(3, work)), strict=True)]

    for found, right in zip(mean_gradient("global_mean"), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(mean_gradient("rank_mean")[0], expected[0])
    assert share_of_batch(7, torch.ones(())) == 1


def test_a_rank_without_samples_has_a_finite_loss_and_its_part_in_the_gradient() -> None:
    x, y = torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    expected = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), list(model.parameters()))

    def work(rank: int) -> list[torch.Tensor]:
        mine = slice(*[(0, 3), (3, 3), (3, 5)][rank])
        classifier = Classifier(copy.deepcopy(model), "sync_bn", loss_weighting="global_mean")
        loss = classifier.training_step((x[mine], y[mine]), 0)
        assert loss.isfinite()
        return list(torch.autograd.grad(loss, list(classifier.parameters())))

    for grads, right in zip(zip(*ok(run_ranks(3, work)), strict=True), expected, strict=True):
        torch.testing.assert_close(torch.stack(grads).mean(0), right, rtol=1e-12, atol=1e-12)


def test_schedule() -> None:
    optim = Optim(warmup=0.1)
    factors = [learning_rate(step, 100, optim) for step in range(101)]
    assert factors[0] < factors[5] < factors[10] == 1.0
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(50, 100, Optim(schedule="constant", warmup=0.0)) == 1.0


@pytest.mark.parametrize(
    ("norm", "during", "after"),
    [(None, SyncBatchNorm, nn.BatchNorm2d), ("gn", GroupNorm, GroupNorm), ("sync_bn", SyncBatchNorm, SyncBatchNorm)],
)
def test_lightnings_sync_batchnorm_switch_works_on_a_cpu(
    norm: str | None, during: type[nn.Module], after: type[nn.Module]
) -> None:
    """Batch norms are synchronised while the Trainer fits; a norm that was chosen before stays."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 2))
    seen = []

    class Probe(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            seen.append(type(module.model[1]))

    data = TensorDataset(torch.randn(8, 1, 8, 8), torch.randint(2, (8,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", strategy="ddp", devices=1, sync_batchnorm=True, plugins=[SyncNorm()],
            callbacks=[Probe()], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(Classifier(model, norm), DataLoader(data, batch_size=4))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    assert seen == [during]
    assert type(model[1]) is after
    assert norm == "gn" or model[1].num_batches_tracked == 2
