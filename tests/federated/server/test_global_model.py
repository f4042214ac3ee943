"""The global model of a run: evaluated with other statistics, and the test samples behind its accuracy."""

import pytest
import torch
from small_runs import play, small_run
from torch import nn

from syncnorm import recalibrate
from syncnorm.config import Optim
from syncnorm.samples import chance_of, details_on, samples_of

BOLD = Optim(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", warmup=0.0)


def test_the_global_model_with_statistics_of_everybodys_images_and_of_the_tests() -> None:
    rounds = play(small_run(method="fedavg", engine="cohort"))
    metrics = rounds.result(0.0).metrics
    people = rounds.federation.population
    x, y = people.global_test
    everyone = people.x[torch.cat([people.train(client) for client in range(people.count)])]
    for name, images in (("global_reestimated_accuracy", everyone), ("global_batch_accuracy", x)):
        model = rounds.federation.models.with_state(rounds.server.state).train()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # one batch then gives its own statistics
        with torch.no_grad():
            model(images)
            expected = (model.eval()(x).argmax(1) == y).double().mean().item()
        assert metrics[name] == pytest.approx(expected, abs=1e-12)
    assert "global_batch_accuracy" not in play(small_run(norm="gn")).result(0.0).metrics


def test_a_norm_that_keeps_more_than_mean_and_variance_is_re_estimated_whole() -> None:
    rounds = play(small_run(method="fedavg", norm="eval_norm", norm_options={"batch": 2}, optim=BOLD))
    metrics, people = rounds.result(0.0).metrics, rounds.federation.population
    x, y = people.global_test
    everyone = people.x[torch.cat([people.train(client) for client in range(people.count)])]
    found = {}
    for name, images in (("global_reestimated_accuracy", everyone), ("global_batch_accuracy", x)):
        model = rounds.federation.models.with_state(rounds.server.state)
        found[name] = (recalibrate(model, [images]).eval()(x).argmax(1) == y).double().mean().item()
    assert {name: metrics[name] for name in found} == pytest.approx(found, abs=1e-12)
    accuracies = []
    for client in range(people.count):
        model = rounds.federation.models.with_state(rounds.server.state)
        model = recalibrate(model, [people.x[people.train(client)]]).eval()
        images, labels, weights = people.test(client)
        accuracies.append((weights * (model(images).argmax(1) == labels)).sum().item())
    assert metrics["reestimated_accuracy"] == pytest.approx(sum(accuracies) / people.count, abs=1e-12)


def test_a_pass_gathers_all_that_a_norm_keeps() -> None:
    rounds = play(small_run(method="sbn", norm="eval_norm", norm_options={"batch": 2}))
    people, state = rounds.federation.population, rounds.server.state
    model = rounds.federation.models.with_state(state)
    rounds.evaluator.gather(2)
    batches = [part for client in range(people.count) for part in rounds.federation.train_images(client, 16)]
    recalibrate(model, batches)
    for name, value in model.state_dict().items():
        if name.endswith("spreads_seen"):
            assert rounds.server.state[name] > 0
            continue
        torch.testing.assert_close(rounds.server.state[name], value, rtol=1e-9, atol=1e-12)


def test_the_samples_behind_the_global_accuracy_add_up_to_it() -> None:
    result = play(small_run(method="fedavg", engine="cohort")).result(0.0)
    behind = details_on(result.details, "global_accuracy")
    assert behind is not None
    samples, chance = samples_of(behind), chance_of(behind)
    assert samples is not None
    assert samples.score.mean() == pytest.approx(result.metrics["global_accuracy"], abs=1e-12)
    assert chance is not None
    assert chance.samples == len(samples.score)
    assert details_on(play(small_run(method="fedbn")).result(0.0).details, "global_accuracy") is None


def test_the_samples_behind_the_worst_client_and_re_estimated_accuracies_add_up_to_them() -> None:
    result = play(small_run(method="fedbn")).result(0.0)
    worst = min(result.details["accuracy_by_client"].values())
    assert result.metrics["client_accuracy_worst"] == worst
    for name in ("client_accuracy_worst", "reestimated_accuracy", "reestimated_accuracy_worst"):
        behind = details_on(result.details, name)
        assert behind is not None
        samples, chance = samples_of(behind), chance_of(behind)
        assert samples is not None
        assert chance is not None
        assert samples.score.mean() == pytest.approx(result.metrics[name], abs=1e-6)
        assert samples.weight.mean() == pytest.approx(1.0)
