"""What a trained model does at test time on a domain whose labels nobody gives: one function a way, by name.

An adaptation takes a copy of the trained model, which it may change, some unlabelled samples of the domain, and the
batches of the test in their order; it yields the logits of each.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syncnorm.config import Adaptation, Domains, Norm
from syncnorm.errors import UserError, unknown
from syncnorm.norms import DomainBatchNorm, domain, stream
from syncnorm.surgery import batch_norms, convert, domain_ensemble, recalibrate, revert, tent
from syncnorm.surgery.convert import layers_with_statistics


@dataclass(frozen=True)
class Test:
    """A domain's test without labels.

    `batches` (b, ...) in the order in which they come; `unlabelled` (n, ...), training samples of the domain;
    `known` is the domain's number where training has seen it, and None where it has not.
    """

    batches: Sequence[Tensor]
    unlabelled: Tensor
    known: int | None
    chunk: int
    """Samples of a batch of the stream."""
    options: dict[str, Any] = field(default_factory=dict)


Adapt = Callable[[nn.Module, Test], Iterator[Tensor]]


@dataclass(frozen=True)
class Way:
    """An adaptation: what it does, whose statistics normalise then, and what it asks for."""

    adapt: Adapt
    statistics: str
    """In words, for rows."""
    options: tuple[str, ...] = ()
    """Names that world.adapt_options may have."""
    apart: bool = False
    """Only a norm that tells domains apart can have it."""
    from_running: bool = False
    """It starts from running statistics, or changes them."""
    replaces: bool = False
    """It puts another layer in the place of the norm."""


def as_trained(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Evaluate by running statistics: where the norm has them a domain's own, of an unseen one all pooled."""
    apart = tells_domains_apart(model)
    if apart and test.known is None:
        model = revert(model)
    model.eval()
    for x in test.batches:
        with domain(test.known) if apart and test.known is not None else nullcontext():
            yield model(x)


def pooled(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Evaluate by the running statistics of all domains pooled: what is left where nobody knows the domain."""
    model = revert(model).eval()
    yield from map(model, test.batches)


def ensemble(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Mix the domains' outputs, each as far as it resembles a sample (`domain_ensemble`)."""
    for x in test.batches:
        yield domain_ensemble(model, x)[0]


def adabn(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Set running statistics to those of the unlabelled samples, in one batch if they are 512 at the most."""
    parts = test.unlabelled.tensor_split(-(-len(test.unlabelled) // 512))
    model = recalibrate(_one_for_all(model), parts, **test.options).eval()
    yield from map(model, test.batches)


def of_each_batch(name: str, **defaults: float) -> Adapt:
    """Return the adaptation that evaluates by the statistics of each test batch, as the norm `name` has them."""

    def adapt(model: nn.Module, test: Test) -> Iterator[Tensor]:
        model = convert(_one_for_all(model), name, **{**defaults, **test.options}).eval()
        yield from map(model, test.batches)

    return adapt


def online(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Let statistics follow a stream of the unlabelled samples, from the source's on; keep them for the test."""
    model = convert(_one_for_all(model), "online_bn", **test.options).eval()
    with stream(model, keep=True):
        for x in test.unlabelled.split(test.chunk):  # type: ignore[no-untyped-call]
            model(x)
    yield from map(model, test.batches)


def entropy(model: nn.Module, test: Test) -> Iterator[Tensor]:
    """Evaluate by each test batch's statistics, and step down the gradient of its predictions' entropy."""
    adapt = tent(_one_for_all(model), **test.options)
    yield from map(adapt, test.batches)


MIXED = "all training domains' and each test batch's"
BATCH = "each test batch's"
WAYS: dict[Adaptation, Way] = {
    "none": Way(as_trained, "all training domains' together"),
    "pooled": Way(pooled, "all training domains' pooled", apart=True),
    "ensemble": Way(ensemble, "each training domain's, mixed", apart=True),
    "adabn": Way(adabn, "own domain's, re-estimated", ("normaliser", "estimator"), from_running=True),
    "prediction": Way(of_each_batch("prediction_bn"), BATCH, replaces=True),
    "mix": Way(
        of_each_batch("prediction_bn", prior_count=16.0), MIXED, ("prior_count",), from_running=True, replaces=True
    ),
    "alpha": Way(of_each_batch("alpha_bn", alpha=0.5), MIXED, ("alpha",), from_running=True, replaces=True),
    "online": Way(
        online,
        "all training domains' and own stream's",
        ("prior_count", "horizon"),
        from_running=True,
        replaces=True,
    ),
    "tent": Way(entropy, BATCH, ("lr", "steps"), replaces=True),
}
OWN_WAY = ("iabn", "example_bn", "eval_norm", "alpha_bn", "prediction_bn", "online_bn")
"""Norms that do something at test time themselves."""


def logits_of(adapt: Adaptation, model: nn.Module, test: Test) -> Tensor:
    """Return the logits (N, classes) of a test's samples, in their order; `model` is used up."""
    with torch.set_grad_enabled(adapt == "tent"):
        return torch.cat([logits.detach() for logits in WAYS[adapt].adapt(model, test)])


def tells_domains_apart(model: nn.Module) -> bool:
    """Return whether the model has a norm with statistics for each domain."""
    return any(isinstance(module, DomainBatchNorm) for module in model.modules())


def statistics_of(adapt: Adaptation, model: nn.Module) -> str:
    """Return in words whose statistics normalise under an adaptation."""
    if not layers_with_statistics(model):
        return "none"
    if adapt == "none" and tells_domains_apart(model):
        return "own domain's (of an unseen one: all pooled)"
    return WAYS[adapt].statistics


def check_adaptation(world: Domains, norm: Norm, model: nn.Module) -> None:
    """Raise `UserError` for an adaptation or option that is unknown, or that the model's norm does not allow."""
    if world.adapt not in WAYS:
        raise unknown("adaptation", world.adapt, WAYS)
    way = WAYS[world.adapt]
    for option in world.adapt_options:
        if option not in way.options:
            raise UserError(
                f"adaptation '{world.adapt}': {unknown('option', option, way.options)}"
                if way.options
                else f"adaptation '{world.adapt}' has no options: leave world.adapt_options out."
            )
    apart = tells_domains_apart(model)
    if "eps" in norm.options and (apart or way.replaces):
        raise UserError(
            f"norm '{norm.name}' has the option eps, which its stand-in at test time would not have: build the model "
            "with it."
        )
    if world.adapt == "none":
        return
    if norm.name in OWN_WAY and way.replaces:
        raise UserError(f"norm '{norm.name}' has its own way at test time, so adapt '{world.adapt}' would undo it.")
    if way.apart and not apart:
        raise UserError(f"adaptation '{world.adapt}' goes by each domain's own statistics: set norm to domain_bn.")
    if not apart and not batch_norms(model):
        raise UserError(f"adaptation '{world.adapt}' changes batch norms, and the model has none: set adapt to none.")
    if way.from_running and any(layer.running_mean is None for layer in batch_norms(model).values()):
        raise UserError(f"adaptation '{world.adapt}' needs running statistics: leave track_running_stats at True.")


def _one_for_all(model: nn.Module) -> nn.Module:
    """Return the model with one set of statistics: where domains have their own, all of them pooled."""
    return revert(model) if tells_domains_apart(model) else model
