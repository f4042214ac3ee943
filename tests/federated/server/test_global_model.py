"""The global model of a run: evaluated with other statistics, and the test samples behind its accuracy."""

import pytest
import torch
from small_runs import play, small_run
from torch import nn

from syncnorm.samples import chance_of, details_on, samples_of


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
