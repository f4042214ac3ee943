"""Adaptations of a trained model to an unlabelled domain at test time: one function and one row each.

@syncnorm.register_adaptation("mine", statistics="each test batch's")
def mine(model, test):
    for x in test.batches:
        yield model(x)
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from syncnorm.checks import check_value
from syncnorm.config import Domains, Norm
from syncnorm.errors import UserError, unknown, where_raised, with_article
from syncnorm.norms import DomainBatchNorm, domain, norm_spec, stream
from syncnorm.registry import Registry, check_named
from syncnorm.surgery import batch_norms, convert, domain_ensemble, recalibrate, revert, tent
from syncnorm.surgery.conversion.convert import layers_with_statistics


@dataclass(frozen=True)
class TargetBatches:
    """The samples of the tested domain, without labels."""

    batches: Sequence[Tensor]
    """The test batches (b, ...), in order."""
    unlabelled: Tensor
    """Training samples of the domain, (n, ...)."""
    known: int | None
    """The number of the domain among the training domains; None for an unseen one."""
    chunk: int
    """Batch size of `unlabelled` as a stream."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The adaptation's options, `world.adapt_options`."""


Adapt = Callable[[nn.Module, TargetBatches], Iterator[Tensor]]
Adapts = TypeVar("Adapts", bound=Adapt)


@dataclass(frozen=True)
class Adaptation:
    """An adaptation at test time to a domain without labels."""

    adapt: Adapt
    """Takes a copy of the trained model, which it may change, and the domain's samples; yields the logits
    (b, classes) of each test batch."""
    statistics: str
    """Which statistics then normalise, in words, for a run's row."""
    options: tuple[str, ...] = ()
    """Allowed names in world.adapt_options."""
    apart: bool = False
    """Whether it needs a norm with statistics for each domain."""
    from_running: bool = False
    """Whether it starts from running statistics, or changes them."""
    replaces: bool = False
    """Whether it puts another layer in place of the norm."""
    gradients: bool = False
    """Whether it needs gradients; otherwise autograd is off."""
    of_classes: bool = False
    """Whether it reads the model's outputs as logits (b, classes)."""


def as_trained(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Evaluate with running statistics: the domain's own if the norm has them, for an unseen domain all pooled."""
    apart = tells_domains_apart(model)
    if apart and test.known is None:
        model = revert(model)
    model.eval()
    for x in test.batches:
        with domain(test.known) if apart and test.known is not None else nullcontext():
            yield model(x)


def pooled(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Evaluate with the pooled running statistics of all domains, as if the domain were unknown."""
    model = revert(model).eval()
    yield from map(model, test.batches)


def ensemble(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Average the domains' outputs, weighted by similarity to each sample (`domain_ensemble`)."""
    for x in test.batches:
        yield domain_ensemble(model, x)[0]


def adabn(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Set running statistics to those of the unlabelled samples, in batches of at most 512."""
    parts = test.unlabelled.tensor_split(-(-len(test.unlabelled) // 512))
    model = recalibrate(_one_for_all(model), parts, **test.options).eval()
    yield from map(model, test.batches)


def of_each_batch(name: str, **defaults: float) -> Adapt:
    """Return the adaptation that evaluates with each test batch's statistics, using the norm `name`."""

    def adapt(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
        model = convert(_one_for_all(model), name, **{**defaults, **test.options}).eval()
        yield from map(model, test.batches)

    return adapt


def online(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Update the source's statistics with a stream of the unlabelled samples, and use the result in the test."""
    model = convert(_one_for_all(model), "online_bn", **test.options).eval()
    with stream(model, keep=True):
        for x in test.unlabelled.split(test.chunk):  # type: ignore[no-untyped-call]
            model(x)
    yield from map(model, test.batches)


def entropy(model: nn.Module, test: TargetBatches) -> Iterator[Tensor]:
    """Evaluate with each test batch's statistics, and take gradient steps on the entropy of its predictions."""
    adapt = tent(_one_for_all(model), **test.options)
    yield from map(adapt, test.batches)


MIXED = "all training domains' and each test batch's"
BATCH = "each test batch's"
# fmt: off
ADAPTATIONS: Registry[Adaptation] = Registry("adaptation", {
    "none": Adaptation(as_trained, "all training domains' together"),
    "pooled": Adaptation(pooled, "all training domains' pooled", apart=True),
    "ensemble": Adaptation(ensemble, "each training domain's, mixed", apart=True, of_classes=True),
    "adabn": Adaptation(adabn, "own domain's, re-estimated", ("normaliser", "estimator"), from_running=True),
    "prediction": Adaptation(of_each_batch("prediction_bn"), BATCH, replaces=True),
    "mix": Adaptation(
        of_each_batch("prediction_bn", prior_count=16.0), MIXED, ("prior_count",), from_running=True, replaces=True),
    "alpha": Adaptation(
        of_each_batch("alpha_bn", alpha=0.5), MIXED, ("alpha",), from_running=True, replaces=True),
    "online": Adaptation(
        online, "all training domains' and own stream's", ("prior_count", "horizon"),
        from_running=True, replaces=True),
    "tent": Adaptation(entropy, BATCH, ("lr", "steps"), replaces=True, gradients=True, of_classes=True),
})
# fmt: on
"""The row of each name; `syncnorm.register_adaptation` adds rows."""


def register_adaptation(
    name: str,
    *,
    statistics: str,
    options: Sequence[str] = (),
    apart: bool = False,
    from_running: bool = False,
    replaces: bool = False,
    gradients: bool = False,
) -> Callable[[Adapts], Adapts]:
    """Register your own adaptation, for `world.adapt`: a decorator for `(model, test) -> iterator of logits`.

    The function gets a copy of the trained model, in training mode, and the `TargetBatches` of a domain, and yields
    the logits (b, classes) of each of test.batches in turn. It is called once per domain.

    Args:
        name: a new name.
        statistics: which statistics then normalise, in words, e.g. "each test batch's", for a run's row.
        options: allowed names in world.adapt_options; the function reads them from test.options.
        apart: whether it needs a norm with statistics for each domain.
        from_running: whether it starts from running statistics, or changes them.
        replaces: whether it puts another layer in place of the norm.
        gradients: whether it needs gradients; otherwise autograd is off.

    Raises:
        UserError: a name that is taken; an object that is not a function of two arguments; a fact of the wrong type.
    """
    check_named(name, "register_adaptation")
    told = f"adaptation '{name}'"
    check_value(statistics, str, f"{told}: statistics")
    check_value(options, tuple[str, ...], f"{told}: options")
    for fact, value in (
        ("apart", apart),
        ("from_running", from_running),
        ("replaces", replaces),
        ("gradients", gradients),
    ):
        check_value(value, bool, f"{told}: {fact}")

    def register(adapt: Adapts) -> Adapts:
        if not callable(adapt):
            raise UserError(f"{told} is {with_article(type(adapt).__name__)}: register a function (model, test).")
        try:
            signature(adapt).bind("model", "test")
        except TypeError as error:
            raise UserError(f"{told}: {adapt.__name__}{signature(adapt)} does not take (model, test).") from error
        row = Adaptation(adapt, statistics, tuple(options), apart, from_running, replaces, gradients)
        ADAPTATIONS.add(name, row)
        return adapt

    return register


def logits_of(adapt: str, model: nn.Module, test: TargetBatches) -> Tensor:
    """Return the logits (N, classes) of a test's samples, in order; `model` may be changed.

    Raises:
        UserError: an error in a registered adaptation, or an invalid result from it.
    """
    row = ADAPTATIONS[adapt]
    with torch.set_grad_enabled(row.gradients):
        if ADAPTATIONS.source(adapt) is None:
            return torch.cat([logits.detach() for logits in row.adapt(model, test)])
        return _theirs(adapt, row, model, test)


def _theirs(adapt: str, row: Adaptation, model: nn.Module, test: TargetBatches) -> Tensor:
    """Return the logits of a user's adaptation, after checking them."""
    try:
        given = list(row.adapt(model, test))
    except UserError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error} ({where_raised(error)})"
        raise UserError(f"adaptation '{adapt}' fails: {said}") from error
    if len(given) != len(test.batches):
        raise UserError(
            f"adaptation '{adapt}' gave logits {len(given)} times for {len(test.batches)} batches: let it yield "
            "those of each batch, in their order."
        )
    for x, logits in zip(test.batches, given, strict=True):
        if not isinstance(logits, Tensor) or logits.dim() < 1 or len(logits) != len(x):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else with_article(type(logits).__name__)
            raise UserError(
                f"adaptation '{adapt}' gave {got} for a batch of {len(x)}: let it yield logits (b, classes)."
            )
    return torch.cat([logits.detach() for logits in given])


def tells_domains_apart(model: nn.Module) -> bool:
    """Return whether the model has a norm with statistics for each domain."""
    return any(isinstance(module, DomainBatchNorm) for module in model.modules())


def statistics_of(adapt: str, model: nn.Module) -> str:
    """Return in words which statistics normalise under an adaptation; "none" for a model without any."""
    if not layers_with_statistics(model):
        return "none"
    if adapt == "none" and tells_domains_apart(model):
        return "own domain's (of an unseen one: all pooled)"
    return ADAPTATIONS[adapt].statistics


def check_adaptation(world: Domains, norm: Norm, model: nn.Module, task: str) -> None:
    """Raise `UserError` for an adaptation or option that is unknown, or that norm or task do not allow."""
    row = ADAPTATIONS[world.adapt]
    if row.of_classes and task != "classification":
        raise UserError(f"adaptation '{world.adapt}' reads logits of classes, which task {task} does not have.")
    for option in world.adapt_options:
        if option not in row.options:
            raise UserError(
                f"adaptation '{world.adapt}': {unknown('option', option, row.options)}"
                if row.options
                else f"adaptation '{world.adapt}' has no options: leave world.adapt_options out."
            )
    apart = tells_domains_apart(model)
    if "eps" in norm.options and (apart or row.replaces):
        raise UserError(
            f"norm '{norm.name}' has the option eps, which its stand-in at test time would not have: build the model "
            "with it."
        )
    if world.adapt == "none":
        return
    if norm_spec(norm.name).adapts and row.replaces:
        raise UserError(f"norm '{norm.name}' adapts at test time itself, and adapt '{world.adapt}' would replace it.")
    if row.apart and not apart:
        raise UserError(f"adaptation '{world.adapt}' goes by each domain's own statistics: set norm to domain_bn.")
    if (row.from_running or row.replaces) and not apart and not batch_norms(model):
        raise UserError(f"adaptation '{world.adapt}' changes batch norms, and the model has none: set adapt to none.")
    if row.from_running and any(layer.running_mean is None for layer in batch_norms(model).values()):
        raise UserError(f"adaptation '{world.adapt}' needs running statistics: leave track_running_stats at True.")


def _one_for_all(model: nn.Module) -> nn.Module:
    """Return the model with one set of statistics; per-domain statistics are pooled."""
    return revert(model) if tells_domains_apart(model) else model
