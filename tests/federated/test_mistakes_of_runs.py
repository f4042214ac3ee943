"""Each mistake in a run of clients gets its one sentence, before anything starts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from small_runs import DATA, PLAIN, play, small_run, start

from syncnorm.config import Clients, Data, Devices, Optim, Run
from syncnorm.errors import UserError
from syncnorm.federated import simulate
from syncnorm.federated.federation import Federation
from syncnorm.federated.policies import POLICIES
from syncnorm.worlds import check

SPEAKS_OF_BATCH_NORM = sorted(POLICIES.keys() - {"fedavg", "centralised", "local_only"})


def sentence_of(run: Run) -> str:
    """Return what a run is refused with, alike by `check` and by `simulate`."""
    sentences = []
    for refuse in (check, simulate):
        with pytest.raises(UserError) as caught:
            refuse(run)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]
    assert sentences[0].endswith(".")
    assert "\n" not in sentences[0]
    return sentences[0]


@pytest.mark.parametrize(
    ("world", "sentence"),
    [
        (
            {"participation": 1.5},
            "participation is 1.5, which is more participants than clients: it is a fraction of the 3 clients, above "
            "0 and at most 1.",
        ),
        ({"participation": 0.0}, "participation is 0.0: it must be above 0 and at most 1."),
        ({"participation": float("nan")}, "participation is nan: it must be above 0 and at most 1."),
        ({"count": 0}, "count is 0: it must be at least 1."),
        ({"rounds": 0}, "rounds is 0: it must be at least 1."),
        ({"rounds": "3"}, "world.rounds is '3': it must be a whole number."),
        ({"domains": "digits"}, "world.domains is 'digits': it must be a tuple."),
        ({"local_epochs": 0}, "local_epochs is 0: it must be at least 1."),
        ({"local_steps": 0}, "local_steps is 0: it must be at least 1."),
        ({"batch": 0}, "batch is 0: it must be at least 1."),
        (
            {"min_batch": 17},
            "batch is 16 and min_batch 17, so no batch could be normalised by itself: raise batch, or lower "
            "min_batch.",
        ),
        ({"min_batch": 0}, "min_batch is 0: it must be at least 1."),
        ({"clip": -0.1}, "clip is -0.1: it must be at least 0."),
        ({"enough": 1.1}, "enough is 1.1: it must be from 0 to 1."),
        ({"validation": 1.0}, "validation is 1.0: it must be from 0 to below 1."),
        ({"equal_size": 1.5}, "equal_size is 1.5: it must be from 0 to 1."),
        ({"held_out": -1}, "held_out is -1: it must be 0 or more."),
        ({"method": "fedbnn"}, "unknown federated policy 'fedbnn': did you mean 'fedbn'? Known: centralised"),
        (
            {"method": "fixbn", "method_options": {"frozen_form": 0.5}},
            "unknown option of the policy fixbn 'frozen_form': did you mean 'frozen_from'? Known: frozen_from.",
        ),
        (
            {"method": "fedbn", "method_options": {"momentum": 0.5}},
            "the policy fedbn takes no options: leave out 'momentum'.",
        ),
        (
            {"method": "fbn", "method_options": {"momentum": 1.5}},
            "option momentum of the policy fbn is 1.5: it must be a number from 0 to 1.",
        ),
        (
            {"method": "fbn", "method_options": {"momentum": float("nan")}},
            "option momentum of the policy fbn is nan: it must be a number from 0 to 1.",
        ),
        (
            {"method": "fbn", "method_options": {"momentum": True}},
            "option momentum of the policy fbn is True: it must be a number from 0 to 1.",
        ),
        (
            {"algorithm": "fedproxx"},
            "unknown world.algorithm 'fedproxx': did you mean 'fedprox'? Known: fedadam, fedavg",
        ),
        (
            {"weighting": "sample"},
            "unknown world.weighting 'sample': did you mean 'samples'? Known: samples, uniform.",
        ),
        ({"small_batch": "skp"}, "unknown world.small_batch 'skp': did you mean 'skip'?"),
        ({"unsampled": "mean"}, "unknown world.unsampled 'mean'. Known: average, initial."),
        ({"global_norm": "pool"}, "unknown world.global_norm 'pool': did you mean 'pooled'?"),
        ({"engine": "lop"}, "unknown world.engine 'lop': did you mean 'loop'?"),
        (
            {"algorithm": "fedprox", "algorithm_options": {"nu": 0.1}},
            "unknown option of the algorithm fedprox 'nu': did you mean 'mu'? Known: mu, squared.",
        ),
        (
            {"algorithm": "scaffold", "algorithm_options": {"mu": 0.1}},
            "the algorithm scaffold takes no options: leave out 'mu'.",
        ),
        (
            {"algorithm": "fedprox", "algorithm_options": {"mu": "big"}},
            "option mu of the algorithm fedprox is 'big': it must be a number.",
        ),
        (
            {"algorithm": "fedprox", "algorithm_options": {"squared": 1}},
            "option squared of the algorithm fedprox is 1: it must be true or false.",
        ),
        (
            {"algorithm": "fedprox", "algorithm_options": {"mu": -1}},
            "option mu of the algorithm fedprox is -1: it must be at least 0.",
        ),
        (
            {"algorithm": "fedprox", "algorithm_options": {"mu": float("nan")}},
            "option mu of the algorithm fedprox is nan: it must be at least 0.",
        ),
        (
            {"algorithm": "fedadam", "algorithm_options": {"beta2": 1.0}},
            "option beta2 of the algorithm fedadam is 1.0: it must be from 0 to below 1.",
        ),
        (
            {"algorithm": "fedadam", "algorithm_options": {"tau": 0}},
            "option tau of the algorithm fedadam is 0: it must be above 0.",
        ),
        (
            {"algorithm": "fedavgm", "algorithm_options": {"lr": 0.0}},
            "option lr of the algorithm fedavgm is 0.0: it must be above 0.",
        ),
        (
            {"method": "fedap", "algorithm": "fedprox"},
            "algorithm fedprox corrects what clients average, and with method fedap they do not average one model: "
            "choose algorithm fedavg.",
        ),
        ({"method": "local_only", "algorithm": "scaffold"}, "algorithm scaffold corrects what clients average"),
        ({"method": "centralised", "algorithm": "fedadam"}, "algorithm fedadam corrects what clients average"),
        (
            {"algorithm": "scaffold", "clip": 0.1},
            "scaffold derives its controls from the path of plain SGD: set clip to 0.",
        ),
        (
            {"keep_momentum": True},
            "keep_momentum needs a momentum to keep: set optim.name to sgd and optim.momentum above 0.",
        ),
        (
            {"method": "fedtan", "engine": "loop"},
            "method fedtan has clients exchange statistics inside a step, which the engine loop cannot: choose the "
            "engine cohort.",
        ),
        ({"method": "fedtan", "engine": "flower"}, "which the engine flower cannot: choose the engine cohort."),
    ],
)
def test_a_mistake_in_the_world_gets_its_sentence(world: dict[str, Any], sentence: str) -> None:
    assert sentence in sentence_of(small_run(**world))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"optim": replace(PLAIN, momentum=0.9), "algorithm": "scaffold"},
            "set optim.name to sgd and optim.momentum",
        ),
        ({"optim": replace(PLAIN, name="adam"), "algorithm": "scaffold"}, "set optim.name to sgd and optim.momentum"),
        ({"optim": Optim(name="adam"), "keep_momentum": True}, "keep_momentum needs a momentum to keep"),
        ({"optim": replace(PLAIN, lr=0.0)}, "optim.lr is 0.0: it must be above 0 and finite."),
        ({"optim": replace(PLAIN, name="sdg")}, "unknown optim.name 'sdg': did you mean 'sgd'?"),
        ({"optim": replace(PLAIN, schedule="cosin")}, "unknown optim.schedule 'cosin': did you mean 'cosine'?"),
        ({"data": replace(DATA, augment="shifted")}, "unknown data.augment 'shifted': did you mean 'shift'?"),
        ({"norm": "sync_bn"}, "norm sync_bn synchronises ranks, and clients are none: choose bn, with the method"),
        ({"norm": "bm"}, "unknown norm 'bm': did you mean 'bn'?"),
        (
            {"norm": "ghost_bn", "method": "fbn"},
            "method fbn puts its own layer in place of batch norm: choose norm bn",
        ),
        ({"norm": "hybrid_bn"}, "norm hybrid_bn is the layer of a method, which method fedavg does not call for"),
        ({"norm": "reference_bn"}, "norm reference_bn is the layer of a method"),
        ({"norm": "frozen_bn", "method": "fixbn"}, "norm frozen_bn is the layer of a method"),
    ],
)
def test_a_mistake_beside_the_world_gets_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in sentence_of(small_run(**changes))


def test_an_unknown_precision_is_refused() -> None:
    run = replace(small_run(), precision="float16")  # type: ignore[arg-type]
    assert "unknown precision 'float16': did you mean '16-mixed'?" in sentence_of(run)


@pytest.mark.parametrize("method", SPEAKS_OF_BATCH_NORM)
@pytest.mark.parametrize("norm", ["none", "gn"])
def test_a_policy_of_batch_norm_refuses_a_model_without_any(method: str, norm: str) -> None:
    engine = "cohort" if method == "fedtan" else "loop"
    options = {"groups": 1} if norm == "gn" else {}
    run = small_run(method=method, norm=norm, norm_options=options, engine=engine)
    assert sentence_of(run) == (
        f"the model has no batch norm, which is all that {method} is about, so it would do the same as fedavg: "
        "choose fedavg, or a model with batch norm."
    )


@pytest.mark.parametrize("method", ["fedavg", "centralised", "local_only"])
def test_other_policies_take_any_norm(method: str) -> None:
    for norm, options in (("gn", {"groups": 1}), ("none", {}), ("scaled_ws", {})):
        rounds = play(small_run(method=method, norm=norm, norm_options=options), rounds=1)
        result = rounds.result(0.0)
        assert result.metrics["batch_norms"] == 0
        assert result.evaluated_by == "none"
        assert "reestimated_accuracy" not in result.metrics


@pytest.mark.parametrize("method", ["fixbn", "sbn", "fbn", "hbn", "fedap"])
def test_a_policy_of_running_statistics_refuses_a_layer_without(method: str) -> None:
    assert sentence_of(small_run(method=method, norm_options={"track_running_stats": False})) == (
        f"layer 'features.1' keeps no running statistics, which {method} is about: build it with "
        "track_running_stats=True, or choose another method."
    )


def test_layers_without_running_statistics_are_evaluated_by_the_batch_and_it_is_said() -> None:
    for method in ("fedavg", "fedbn", "local_only"):
        result = play(small_run(method=method, norm_options={"track_running_stats": False})).result(0.0)
        assert result.evaluated_by == "batch (the test images at hand)"


@pytest.mark.parametrize("method", sorted(POLICIES.keys() - {"fedtan"}))
@pytest.mark.parametrize("options", [{"affine": False}, {"momentum": None}])
def test_other_batch_norms_are_no_mistake(method: str, options: dict[str, Any]) -> None:
    metrics = (
        play(small_run(method=method, norm_options=options, held_out=1, global_norm="pooled")).result(0.0).metrics
    )
    assert metrics["batch_norms"] == 3
    assert metrics["clients_left_out"] == 0


def test_a_mean_over_all_batches_is_refused_in_a_batched_step() -> None:
    common = "layer 'features.1' (BatchNorm2d) has momentum None, the mean over all batches, which clients in one "
    for world, instead in (
        ({"method": "fedtan", "engine": "cohort"}, "give it a momentum, such as 0.1."),
        ({"method": "fedtan", "engine": "torchrun"}, "give it a momentum, such as 0.1."),
        ({"engine": "cohort"}, "set engine to loop, or give it a momentum, such as 0.1."),
        ({"engine": "torchrun", "rank_engine": "cohort"}, "set rank_engine to loop, or give it a momentum, such as"),
    ):
        said = sentence_of(small_run(norm_options={"momentum": None}, **world))
        assert said.startswith(f"{common}batched step cannot take: {instead}")
    assert play(small_run(norm_options={"momentum": None}, engine="auto")).network.engine.name == "loop"


@pytest.mark.parametrize("take", [simulate, Federation])
def test_a_run_of_devices_is_no_run_of_clients(take: Callable[[Run], object]) -> None:
    with pytest.raises(UserError, match="this run is one of devices, not of clients: give it to"):
        take(Run(world=Devices()))
    with pytest.raises(UserError, match=r"optim\.lr is 'high': it must be a number"):
        take(replace(small_run(), optim=Optim(lr="high")))  # type: ignore[arg-type]


FORTY_ONE = {"data": Data("digits", size=8, train_limit=41, test_limit=20), "count": 1, "rounds": 1, "batch": 8}
"""One client with 41 samples: five batches of 8 and one of a single sample."""


def test_a_batch_of_one_sample_can_be_an_error() -> None:
    assert sentence_of(small_run(small_batch="error", **FORTY_ONE)) == (
        "client 0 of 1 has 41 training samples, and a batch of 1 is below min_batch 2: set small_batch to skip or "
        "use_running, lower min_batch, or make the partition less skewed."
    )
    start(small_run(small_batch="error", **{**FORTY_ONE, "count": 4, "batch": 5}))  # 11, 10, 10, 10: no batch of one


@pytest.mark.parametrize(("rule", "steps"), [("skip", 5), ("use_running", 6)])
def test_a_batch_of_one_sample_is_left_out_or_normalised_by_running_statistics(rule: str, steps: int) -> None:
    rounds = play(small_run(small_batch=rule, **FORTY_ONE))
    plan = rounds.federation.schedule.plan(0, 0)
    assert [len(batch) for batch in plan.batches] == [8, 8, 8, 8, 8, 1][:steps]
    assert plan.running == (False, False, False, False, False, True)[:steps]
    assert rounds.result(0.0).metrics["small_batches"] == 1
    assert rounds.server.state["features.1.num_batches_tracked"] == 5


@pytest.mark.parametrize("rule", ["skip", "use_running"])
def test_local_steps_are_so_many_whatever_is_left_out(rule: str) -> None:
    rounds = start(small_run(small_batch=rule, local_steps=13, **FORTY_ONE))
    plan = rounds.federation.schedule.plan(0, 0)
    sizes = [len(batch) for batch in plan.batches]
    assert sizes == {"skip": [8] * 13, "use_running": ([8] * 5 + [1]) * 2 + [8]}[rule]
    assert plan.small == 2


def test_a_client_with_too_few_samples_for_any_batch_has_no_steps() -> None:
    run = small_run(local_steps=3, min_batch=16, data=replace(DATA, train_limit=30), count=2)
    plan = start(run).federation.schedule.plan(0, 0)
    assert plan.batches == ()
    assert plan.small == 1


def test_clients_defaults_are_no_mistake() -> None:
    check(Run(data=DATA, world=Clients(count=3)))
