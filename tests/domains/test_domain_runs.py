"""Runs of the domains world beside loops written out by hand, and the mistakes a user can make."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import syncnorm
from syncnorm.config import Data, Domains, Norm, Optim, Run
from syncnorm.domains import fit
from syncnorm.domains.adaptation import TargetBatches as Trial
from syncnorm.domains.adaptation import logits_of, statistics_of
from syncnorm.domains.batches import deal
from syncnorm.domains.measure import measure
from syncnorm.domains.prepare import prepare
from syncnorm.domains.world import train
from syncnorm.errors import UserError
from syncnorm.training.lightning.classifier import learning_rate, make_optimizer
from syncnorm.worlds import check, forget

CPU = torch.device("cpu")
WORLD = Domains(("digits", "digits-inverted", "digits-noisy"), unseen=("digits-noisy",), batch=16, test_batch=20)
RUN = Run(
    data=Data("few", train_limit=70, test_limit=50),
    model_options={"width": 4},
    world=WORLD,
    optim=Optim(epochs=2),
    precision="float64",
)


def changed(norm: Norm | str = "bn", **fields: Any) -> Run:
    norm = Norm(norm) if isinstance(norm, str) else norm
    return replace(RUN, norm=norm, world=replace(WORLD, **fields))


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    forget()


@pytest.mark.parametrize("batches", ["mixed", "one_domain"])
@pytest.mark.parametrize("norm", ["bn", "domain_bn"])
def test_training_is_the_loop_written_out(norm: str, batches: str) -> None:
    run = changed(norm, batches=batches)
    by_hand = prepare(run, CPU)
    optimizer = make_optimizer(by_hand.model.named_parameters(), run.optim)
    epochs = [deal(by_hand.pool, by_hand.seen, run.world, run.seed, epoch) for epoch in range(2)]  # type: ignore[arg-type]
    steps = sum(map(len, epochs))
    for step, (index, ids) in enumerate(batch for epoch in epochs for batch in epoch):
        for group in optimizer.param_groups:
            group["lr"] = run.optim.lr * learning_rate(step, steps, run.optim)
        optimizer.zero_grad()
        with syncnorm.domain(ids):
            F.cross_entropy(by_hand.model(by_hand.pool.x[index]), by_hand.pool.y[index]).backward()
        optimizer.step()
    trained = train(run, prepare(run, CPU), CPU)
    assert trained.steps == steps
    for name, value in by_hand.model.state_dict().items():
        torch.testing.assert_close(trained.model.state_dict()[name], value, rtol=0, atol=1e-12)


def test_batches_hold_every_domain_or_one() -> None:
    prepared = prepare(RUN, CPU)
    mixed = deal(prepared.pool, prepared.seen, WORLD, 0, 0)
    apart = deal(prepared.pool, prepared.seen, replace(WORLD, batches="one_domain"), 0, 0)
    assert len(mixed) == 140 // 16
    assert len(apart) == 2 * (70 // 16)
    assert any(len(ids.unique()) == 2 for _, ids in mixed)
    assert {len(ids.unique()) for _, ids in apart} == {1}
    for index, ids in mixed + apart:
        starts = torch.tensor([prepared.pool.starts[domain] for domain in prepared.seen])
        assert torch.equal((index >= 70).long(), ids)
        assert (index >= starts[ids]).all()


def test_the_order_of_a_domain_does_not_depend_on_the_others() -> None:
    few = prepare(changed(batches="one_domain"), CPU)
    more = prepare(changed(batches="one_domain", domains=("digits-fonts", *WORLD.domains)), CPU)

    def order(prepared: Any, name: str) -> list[int]:
        at = prepared.pool.names.index(name)
        start = prepared.pool.starts[at]
        dealt = deal(prepared.pool, prepared.seen, replace(WORLD, batches="one_domain"), 3, 1)
        mine = [index - start for index, ids in dealt if prepared.seen[int(ids[0])] == at]
        return sorted(torch.cat(mine).tolist())

    assert order(few, "digits") == order(more, "digits")


def test_runs_that_differ_in_their_test_share_a_training_and_a_fresh_one_gives_the_same() -> None:
    adapted = changed(adapt="adabn", adapt_samples=30)
    fit(RUN)
    shared = fit(adapted)
    forget()
    alone = fit(adapted)
    assert shared.metrics == alone.metrics
    assert shared.history == alone.history
    assert shared.metrics != fit(RUN).metrics


def test_the_history_does_not_depend_on_the_test_of_the_run_that_trained() -> None:
    by_batch = replace(changed("prediction_bn"), optim=Optim(epochs=6))
    first = fit(replace(by_batch, world=replace(WORLD, test_batch=5, test_order="sorted"))).history
    forget()
    assert fit(by_batch).history == first


def test_what_a_row_says() -> None:
    result = fit(changed("domain_bn"))
    metrics = result.metrics
    assert metrics["accuracy"] == metrics["accuracy_digits-noisy"]
    assert metrics["accuracy_seen"] == pytest.approx(
        (metrics["accuracy_digits"] + metrics["accuracy_digits-inverted"]) / 2
    )
    assert set(result.history) == {"train_loss", "seen_accuracy", "unseen_accuracy"}
    assert all(len(values) == 2 for values in result.history.values())
    assert result.history["unseen_accuracy"][-1] == metrics["accuracy"]
    assert result.evaluated_by == "own domain's (of an unseen one: all pooled)"


@pytest.mark.parametrize("norm", ["mabn", "evonorm_b0", "gn", "none"])
def test_norms_with_running_statistics_of_their_own_say_so(norm: str) -> None:
    words = {"gn": "none", "none": "none"}.get(norm, "all training domains' together")
    assert statistics_of("none", prepare(changed(norm), CPU).model) == words


def test_without_an_unseen_domain_the_accuracy_is_that_of_the_seen_ones() -> None:
    result = fit(changed(unseen=()))
    assert result.metrics["accuracy"] == result.metrics["accuracy_seen"]
    assert "unseen_accuracy" not in result.history


class TestAdaptations:
    """Every way of adapting, beside what it does written out."""

    @staticmethod
    def trained(norm: str = "bn") -> tuple[nn.Module, Trial, Tensor]:
        run = changed(norm)
        prepared = prepare(run, CPU)
        model = train(run, prepared, CPU).model
        pool = prepared.pool
        x = pool.test_x[pool.tests(2)]
        trial = Trial(x.split(20), pool.x[pool.starts[2] : pool.starts[2] + 40], None, 20)  # type: ignore[no-untyped-call]
        return model, trial, x

    @pytest.mark.parametrize("norm", ["bn", "domain_bn"])
    def test_every_one_leaves_the_model_as_it_was(self, norm: str) -> None:
        run = changed(norm)
        prepared = prepare(run, CPU)
        model = train(run, prepared, CPU).model
        before = copy.deepcopy(model.state_dict())
        ways = ["none", "adabn", "prediction", "mix", "alpha", "online", "tent"]
        scores = {adapt: measure(run, prepared, model, 2, adapt) for adapt in [*ways, "none"]}  # type: ignore[arg-type]
        assert len(set(scores.values())) > 4
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name])

    def test_adabn_is_recalibration(self) -> None:
        model, trial, x = self.trained()
        expected = syncnorm.recalibrate(copy.deepcopy(model), [trial.unlabelled]).eval()(x)
        torch.testing.assert_close(logits_of("adabn", copy.deepcopy(model), trial), expected)

    def test_prediction_is_the_forward_of_training(self) -> None:
        model, trial, _ = self.trained()
        expected = torch.cat([copy.deepcopy(model).train()(part) for part in trial.batches])
        torch.testing.assert_close(logits_of("prediction", copy.deepcopy(model), trial), expected)

    def test_mixes_go_from_the_source_to_the_batch(self) -> None:
        model, trial, x = self.trained()
        source, batch = model.eval()(x), logits_of("prediction", copy.deepcopy(model), trial)
        for adapt, option, to_source, to_batch in (
            ("mix", "prior_count", 1e12, 0.0),
            ("alpha", "alpha", 1.0, 0.0),
        ):
            for value, expected in ((to_source, source), (to_batch, batch)):
                one = replace(trial, options={option: value})
                logits = logits_of(adapt, copy.deepcopy(model), one)  # type: ignore[arg-type]
                torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)

    def test_online_goes_from_the_source_to_the_stream(self) -> None:
        model, trial, x = self.trained()
        source = model.eval()(x)
        far = replace(trial, options={"prior_count": 1e12})
        torch.testing.assert_close(logits_of("online", copy.deepcopy(model), far), source, rtol=1e-6, atol=1e-6)
        alone = replace(trial, options={"prior_count": 0.0}, chunk=40)
        own = logits_of("online", copy.deepcopy(model), alone)
        recalibrated = copy.deepcopy(model)
        for name, moments in syncnorm.layer_moments(model, [trial.unlabelled]).items():
            layer = syncnorm.batch_norms(recalibrated)[name]
            layer.running_mean, layer.running_var = moments.mean, moments.var()
        torch.testing.assert_close(own, recalibrated.eval()(x))

    def test_pooled_and_ensemble_know_no_domain(self) -> None:
        model, trial, x = self.trained("domain_bn")
        known = replace(trial, known=0)
        with syncnorm.domain(0):
            torch.testing.assert_close(logits_of("none", copy.deepcopy(model), known), model.eval()(x))
        pooled = syncnorm.revert(copy.deepcopy(model)).eval()(x)
        torch.testing.assert_close(logits_of("pooled", copy.deepcopy(model), known), pooled)
        torch.testing.assert_close(logits_of("none", copy.deepcopy(model), trial), pooled)
        mixed, _ = syncnorm.domain_ensemble(model, x)
        torch.testing.assert_close(logits_of("ensemble", copy.deepcopy(model), known), mixed)

    def test_tent_steps_down_the_entropy(self) -> None:
        model, trial, _ = self.trained()
        sure = replace(trial, options={"lr": 0.05, "steps": 10})

        def entropy(logits: Tensor) -> float:
            return float(torch.distributions.Categorical(logits=logits).entropy().mean())

        before = entropy(logits_of("prediction", copy.deepcopy(model), trial))
        assert entropy(logits_of("tent", copy.deepcopy(model), sure)) < 0.9 * before


def test_a_sorted_test_spoils_the_statistics_of_its_batches() -> None:
    run = changed(adapt="prediction", test_batch=10)
    run = replace(run, optim=Optim(epochs=12))
    shuffled = fit(run).metrics["accuracy_digits"]
    sorted_ = fit(replace(run, world=replace(run.world, test_order="sorted"))).metrics["accuracy_digits"]
    assert sorted_ < shuffled


def test_parameters_of_each_domain_are_no_more_decayed_than_others_of_norms() -> None:
    model = prepare(changed(Norm("domain_bn", {"domain_affine": True})), CPU).model
    decayed, others = (group["params"] for group in make_optimizer(model.named_parameters(), Optim()).param_groups)
    assert {p.dim() for p in decayed} == {2, 4}
    assert sum(p.dim() == 2 for p in decayed) == 1
    assert sum(p.dim() == 2 for p in others) == 6


def test_a_norm_that_asks_for_the_batch_of_training_gets_it() -> None:
    layers = syncnorm.batch_norms(prepare(changed("eval_norm"), CPU).model).values()
    assert {layer.batch for layer in layers} == {16}


MISTAKES: list[tuple[Run, str]] = [
    (changed(domains=(), unseen=()), "name the data sets that are its domains"),
    (changed(domains=("digits", "digits")), "twice"),
    (changed(unseen=("digits-nosy",)), "did you mean 'digits-noisy'"),
    (changed("domain_bn", unseen=("digits-noisy", "digits-noisy")), "world.unseen has digits-noisy twice"),
    (changed(unseen=WORLD.domains), "at least one has to train"),
    (changed(domains=("digits", "seen")), "cannot be called 'seen'"),
    (changed(batches="one"), "unknown world.batches 'one'"),
    (changed(batch=0), "world.batch is 0"),
    (changed(batch=1000), "lower world.batch"),
    (changed(batch=71, batches="one_domain"), "digits 70 training samples"),
    (changed(adapt_samples=0), "world.adapt_samples is 0"),
    (changed(adapt="pooled"), "set norm to domain_bn"),
    (changed("gn", adapt="adabn"), "set adapt to none"),
    (changed(adapt="tent", adapt_options={"prior": 3}), "option 'prior'"),
    (changed(adapt="none", adapt_options={"prior": 3}), "has no options"),
    (changed(adapt="tent", adapt_options={"steps": 0}), "at least 1"),
    (changed(adapt="tent", adapt_options={"steps": "2"}), "at least 1"),
    (changed(adapt="tent", adapt_options={"lr": -1.0}), "learning rate"),
    (changed(adapt="mix", adapt_options={"prior_count": -1}), "prior_count is -1"),
    (changed(adapt="adabn", adapt_options={"estimator": "mean"}), "unknown estimator 'mean'"),
    (changed(Norm("bn", {"track_running_stats": False}), adapt="online"), "needs running statistics"),
    (replace(changed(adapt="prediction", test_batch=49), model="mlp"), "adaptation 'prediction' cannot work here"),
    (replace(changed(adapt="adabn", adapt_samples=1), model="mlp"), "one value per channel"),
    (replace(changed(batch=1), model="mlp"), "cannot train on 1 samples"),
    (changed("bm"), "norm 'bm'"),
    (changed(Norm("bn", {"eps": 0.1}), adapt="prediction"), "has the option eps"),
    (changed("iabn", adapt="tent"), "adapts at test time itself"),
    (replace(RUN, data=Data("few", path="/no/such/folder")), "is no folder"),
    (changed(domains=("digits", "digit-noisy"), unseen=()), "digits-noisy"),
    (replace(RUN, optim=Optim(lr=-1.0)), "optim.lr"),
    (replace(RUN, model="signal_cnn"), "signal_cnn"),
    (changed(Norm("domain_bn", {"domains": 1})), "leave the option out"),
]


@pytest.mark.parametrize(("run", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_a_mistake_gets_one_sentence(run: Run, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        check(run)
    assert "\n" not in str(caught.value)
