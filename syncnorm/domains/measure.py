"""Tests of a model trained on domains: on each domain, under an adaptation, over ranks as in one process."""

from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from syncnorm.config import Domains, Run
from syncnorm.domains.adaptation import TargetBatches, logits_of, statistics_of
from syncnorm.domains.prepare import Prepared, domains
from syncnorm.norms.core.ranks.alone import alone
from syncnorm.samples import ACCURACY, sample_details
from syncnorm.seeds import derive
from syncnorm.surgery import batch_norms, convert
from syncnorm.surgery.layers.replace import copied
from syncnorm.tasks import task_named
from syncnorm.training.checkpoints import load_module_state, module_state
from syncnorm.training.evaluation import score_and_loss
from syncnorm.training.metrics import own_metrics
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.layers import goes_by_rank, statistics_are_kept_by_rank
from syncnorm.training.ranks.rank_statistics import statistics_by_rank, use_statistics
from syncnorm.training.ranks.virtual_ranks import rank_0


def as_tested(run: Run, model: nn.Module, ranks: Ranks, whose: Literal["rank0", "pooled"]) -> nn.Module:
    """Return a model as the test uses it: a copy of rank 0's, the same on all ranks, with layers for one process.

    Running statistics that ranks have of their own are rank 0's or, of batch norm, all ranks' pooled.
    """
    if domains(run).ranks == 1:
        return model
    model = rank_0(copied(model))
    statistics = statistics_by_rank(model)
    if ranks.size > 1:
        load_module_state(model, ranks.told(lambda: module_state(model)))
    use_statistics(model, statistics, whose)
    layer = layer_as_tested(run)
    return convert(model, layer[0], **layer[1]) if layer and batch_norms(model) else model


def layer_as_tested(run: Run) -> tuple[str, dict[str, Any]] | None:
    """Return the name and options of the norm's layer in the test, if training has another one: all ranks in one."""
    world = domains(run)
    several = world.ranks > 1 and world.engine == "virtual" and statistics_are_kept_by_rank(run.norm)
    return (run.norm.name, run.norm.options) if several else None


def evaluated_by(run: Run, model: nn.Module) -> str:
    """Return in words which running statistics evaluated a model."""
    world = domains(run)
    words = statistics_of(world.adapt, model)
    trained = world.adapt == "none" or "training domains" in words
    if world.ranks == 1 or words == "none" or not trained or not goes_by_rank(run.norm):
        return words
    whose = {"rank0": "rank 0 has seen", "pooled": "all ranks have seen, pooled"}[world.buffers]
    return f"{words}, as {whose}"


def tested(run: Run, prepared: Prepared, model: nn.Module, ranks: Ranks) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the metrics of a trained model on every domain, their means over the domains that count, and the scores
    of these domains' samples. Ranks share the domains out."""
    main, by_domain = task_named(run.task).metric, dict[str, list[float]]()
    found = ranks.shared_out(range(len(prepared.pool.names)), lambda index: _of_domain(run, prepared, model, index))
    for values, _ in found:
        for name, value in values.items():
            by_domain.setdefault(name, []).append(value)
    scores = [one for _, one in found]
    tested = prepared.unseen or prepared.seen
    means = {name: fmean(values[index] for index in tested) for name, values in by_domain.items()}
    named = {
        f"{name}_{domain}": value
        for name, values in by_domain.items()
        if name != "loss"
        for domain, value in zip(prepared.pool.names, values, strict=True)
    }
    seen = fmean(by_domain[main][index] for index in prepared.seen)
    metrics = {main: means.pop(main), f"{main}_seen": seen, **named, **means}
    return metrics, _samples(run, prepared, [(index, scores[index]) for index in tested])


def _of_domain(run: Run, prepared: Prepared, model: nn.Module, index: int) -> tuple[dict[str, float], Tensor]:
    """Return a domain's metrics, and the scores of its test samples."""
    task = task_named(run.task)
    outputs, y = predicted(run, prepared, model, index, domains(run).adapt)
    score, loss = score_and_loss(run.task, outputs, y)
    values = {task.metric: score, "loss": loss, **own_metrics(run, outputs, y)}
    return values, task.scores(outputs, y).cpu()


def _samples(run: Run, prepared: Prepared, scores: list[tuple[int, Tensor]]) -> dict[str, Any]:
    """Return the details on the test samples of domains, given their scores in the order of the test.

    All domains count alike in the main metric, so each sample has the weight 1 / its domain's size.
    """
    pool, main = prepared.pool, task_named(run.task).metric
    place = torch.cat([_tested(run, pool.names[index], pool.tests(index), pool.test_strata) for index, _ in scores])
    weight = torch.cat([torch.full((len(one),), 1 / len(one), dtype=torch.float64) for _, one in scores])
    weight = weight / weight.mean()
    score = weight * torch.cat([one for _, one in scores])
    labels = pool.test_y.cpu()[place] if main == ACCURACY else None
    origin = None if pool.origin is None else pool.origin[place]
    return sample_details(score, labels, weight, origin, main)


def validated(
    run: Run, prepared: Prepared, model: nn.Module, ranks: Ranks, adapt: str | None = None
) -> dict[str, float]:
    """Return the validation metrics: means over seen domains, under an adaptation (None: the run's)."""
    if not run.data.validation:
        return {}
    way = domains(run).adapt if adapt is None else adapt

    def of_domain(index: int) -> tuple[float, float]:
        return score_and_loss(run.task, *predicted(run, prepared, model, index, way, validation=True))

    scores = ranks.shared_out(prepared.seen, of_domain)
    accuracies, losses = zip(*scores, strict=True)
    return {task_named(run.task).named("validation_accuracy"): fmean(accuracies), "validation_loss": fmean(losses)}


def measure(run: Run, prepared: Prepared, model: nn.Module, index: int, adapt: str) -> tuple[float, float]:
    """Return `(main metric, loss)` of `model` on the test set of a domain, under an adaptation."""
    return score_and_loss(run.task, *predicted(run, prepared, model, index, adapt))


def predicted(
    run: Run, prepared: Prepared, model: nn.Module, index: int, adapt: str, validation: bool = False
) -> tuple[Tensor, Tensor]:
    """Return outputs (n, ...) and targets (n, ...) of the test (or validation) set of a domain, under an adaptation.

    The model does not change: a copy is adapted.
    """
    world, pool = domains(run), prepared.pool
    name, tests = pool.names[index], pool.validations(index) if validation else pool.tests(index)
    x, y = (pool.validation_x, pool.validation_y) if validation else (pool.test_x, pool.test_y)
    training = slice(pool.starts[index], pool.starts[index + 1])
    strata = pool.validation_strata if validation else pool.test_strata
    order = _tested(run, pool.names[index], tests, strata)
    unlabelled = _order(world, pool.strata[training].cpu(), derive("stream order", run.seed, name)) + training.start
    held, device = pool.x.device, next(model.parameters()).device
    test = TargetBatches(
        batches=x[order.to(held)].to(device).split(world.test_batch),  # type: ignore[no-untyped-call]
        unlabelled=pool.x[unlabelled[: world.adapt_samples].to(held)].to(device),
        known=prepared.seen.index(index) if index in prepared.seen else None,
        chunk=world.test_batch,
        options=world.adapt_options if adapt == world.adapt else {},
    )
    with alone():  # other ranks test other domains
        outputs = logits_of(adapt, copied(model), test)
    return outputs, y[order.to(held)].to(device)


def _tested(run: Run, name: str, tests: slice, labels: Tensor) -> Tensor:
    """Return the samples `tests` of domain `name` in the order of its test: int64 (n,) places in the pool."""
    places: Tensor = _order(domains(run), labels[tests].cpu(), derive("test order", run.seed, name)) + tests.start
    return places


def _order(world: Domains, labels: Tensor, seed: int) -> Tensor:
    """Return the order of samples: random, or then sorted by label."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels)))
    return order[labels[order].argsort(stable=True)] if world.test_order == "sorted" else order
