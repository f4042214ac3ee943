"""An adaptation of somebody else's is tested like one of ours, and its mistakes get a sentence before training."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import syncnorm
from syncnorm import register_adaptation
from syncnorm.config import Data, Domains, Norm, Optim, Run
from syncnorm.domains import ADAPTATIONS, TargetBatches
from syncnorm.errors import UserError

pytestmark = pytest.mark.usefixtures("registries")

WORLD = Domains(("digits", "digits-inverted"), unseen=("digits-inverted",), adapt="mine", test_batch=16)
SHORT = Run(
    data=Data("digits", train_limit=160, test_limit=60),
    model_options={"width": 4},
    norm=Norm("bn"),
    world=WORLD,
    optim=Optim(epochs=1, lr=0.01),
)


def as_it_is(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Evaluate the model as trained."""
    model.eval()
    yield from map(model, test.batches)


def test_it_gives_the_metrics_and_says_whose_statistics() -> None:
    register_adaptation("mine", statistics="the same")(as_it_is)
    mine = syncnorm.fit(SHORT)
    plain = syncnorm.fit(replace(SHORT, world=replace(WORLD, adapt="none")))
    assert mine.evaluated_by == "the same"
    assert mine.metrics == plain.metrics
    assert mine.run_id != plain.run_id


def test_it_is_given_samples_and_options() -> None:
    seen: list[tuple[Any, ...]] = []

    @register_adaptation("mine", statistics="own", options=("strength",))
    def mine(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
        sizes = {len(x) for x in test.batches[:-1]}
        seen.append(
            (test.known, sizes, len(test.unlabelled), test.chunk, dict(test.options), torch.is_grad_enabled())
        )
        return as_it_is(model, test)

    syncnorm.fit(replace(SHORT, world=replace(WORLD, adapt_options={"strength": 2}, adapt_samples=32)))
    assert seen[-2:] == [
        (0, {16}, 32, 16, {"strength": 2}, False),
        (None, {16}, 32, 16, {"strength": 2}, False),
    ]
    with pytest.raises(UserError, match="adaptation 'mine': unknown option 'strenght': did you mean 'strength'"):
        syncnorm.fit(replace(SHORT, world=replace(WORLD, adapt_options={"strenght": 2})))


def test_gradients_are_on_where_the_row_says_so() -> None:
    found = []

    @register_adaptation("mine", statistics="own", gradients=True)
    def mine(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
        for x in test.batches:
            logits = model.train()(x)
            logits.square().mean().backward()
            found.append(next(model.parameters()).grad is not None)
            yield logits

    syncnorm.fit(SHORT)
    assert found
    assert all(found)


def test_one_that_leaves_norms_alone_needs_none() -> None:
    register_adaptation("mine", statistics="own")(as_it_is)
    assert syncnorm.fit(replace(SHORT, norm=Norm("none"))).evaluated_by == "none"


def fails(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("adapt", "facts", "changes", "sentence"),
    [
        (fails, {}, {}, "adaptation 'mine' fails: KeyError: 'gone' (test_register_adaptation.py:"),
        (lambda model, test: [model(test.batches[0])] * 3, {}, {}, "gave logits 3 times for 1 batches"),
        (lambda model, test: 42, {}, {}, "adaptation 'mine' fails: TypeError"),
        (lambda model, test: [x for x in test.batches], {}, {}, "for a batch of 2: let it yield logits (b, classes)"),
        (lambda model, test: ["x" for _ in test.batches], {}, {}, "gave a str for a batch of 2"),
        (as_it_is, {"apart": True}, {}, "adaptation 'mine' goes by each domain's own statistics"),
        (as_it_is, {"replaces": True}, {"norm": Norm("iabn")}, "norm 'iabn' adapts at test time itself"),
        (
            as_it_is,
            {"replaces": True},
            {"norm": Norm("none")},
            "adaptation 'mine' changes batch norms, and the model has none",
        ),
        (as_it_is, {}, {"world": replace(WORLD, adapt="mien")}, "unknown adaptation 'mien': did you mean 'mine'?"),
        (as_it_is, {}, {"world": replace(WORLD, adapt_options={"x": 1})}, "adaptation 'mine' has no options"),
    ],
)
def test_mistakes_are_told_before_training(adapt: Any, facts: Any, changes: Any, sentence: str) -> None:
    register_adaptation("mine", statistics="own", **facts)(adapt)
    with pytest.raises(UserError, match=re.escape(sentence)):
        syncnorm.worlds.check(replace(SHORT, **changes))


def test_what_cannot_be_registered_gets_a_sentence() -> None:
    for register, sentence in [
        (
            lambda: register_adaptation("tent", statistics="own")(as_it_is),
            "'tent' is registered already, by syncnorm",
        ),
        (lambda: register_adaptation("mine", statistics=3)(as_it_is), "adaptation 'mine': statistics is 3"),
        (lambda: register_adaptation("mine", statistics="own", options="lr")(as_it_is), "options is 'lr'"),
        (lambda: register_adaptation("mine", statistics="own")(42), "adaptation 'mine' is an int"),
        (lambda: register_adaptation("mine", statistics="own")(lambda model: []), "does not take (model, test)"),
        (
            lambda: register_adaptation("mine", statistics="own", replaces=1)(as_it_is),
            "replaces is 1: it must be True",
        ),
    ]:
        with pytest.raises(UserError, match=re.escape(sentence)):
            register()  # type: ignore[no-untyped-call]
    assert "mine" not in ADAPTATIONS
