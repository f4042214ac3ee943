"""The models of a run of clients: the initial one, the one that trains, and the one that is evaluated."""

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain

import torch
from torch import Tensor, nn

from syncnorm.config import Norm, Run
from syncnorm.federated.policies import Policy, rules
from syncnorm.surgery import convert
from syncnorm.training.building import build_model, place_model
from syncnorm.training.learner import Learner


class Models:
    """Builds a run's model, always with the same initial weights, and with the layers that the policy needs.

    template: the initial model; do not modify it.
    """

    def __init__(self, run: Run, policy: Policy, shape: tuple[int, ...], classes: int, device: torch.device) -> None:
        self._run, self._policy = run, policy
        self._shape, self._classes, self._device = shape, classes, device
        self.template = self.build()

    def build(self) -> nn.Module:
        """Build a new model: closures of a copy, if any, would still refer to the original."""
        model = place_model(self._run, build_model(self._run, self._shape, self._classes), self._device)
        if self._policy.training != "hybrid":
            return model
        rules(model, self._policy)  # `convert` would put batch norm back into a model that no longer has any
        return convert(model, "hybrid_bn", **self._run.norm.options)

    def classifier(self, frozen: bool) -> Learner:
        """Return the model that trains, with frozen statistics or not; always the same object, whose weights are
        ignored."""
        return self._frozen_classifier if frozen else self._classifier

    def fresh(self, frozen: bool) -> dict[str, Tensor]:
        """Return the initial parameters and buffers of the model that trains; shared, so do not modify them."""
        return self._fresh_frozen if frozen else self._fresh

    def with_state(self, state: Mapping[str, Tensor]) -> nn.Module:
        """Return the evaluated model, with these entries over its initial ones; always the same object."""
        _load(self._evaluated, {**self._initial, **state})
        return self._evaluated

    @cached_property
    def _classifier(self) -> Learner:
        layer = Norm("reference_bn", self._run.norm.options) if self._policy.training == "running" else None
        return self._learner(layer)

    @cached_property
    def _frozen_classifier(self) -> Learner:
        return self._learner(Norm("frozen_bn", self._run.norm.options))

    def _learner(self, norm: Norm | None) -> Learner:
        run = self._run
        learner = Learner(self.build(), norm=norm, optim=run.optim, task=run.task, precision=run.precision)
        if run.compile:
            learner.model.compile()
        return learner

    @cached_property
    def _fresh(self) -> dict[str, Tensor]:
        return _copies(self._classifier.model)

    @cached_property
    def _fresh_frozen(self) -> dict[str, Tensor]:
        return _copies(self._frozen_classifier.model)

    @cached_property
    def _evaluated(self) -> nn.Module:
        return self.build()

    @cached_property
    def _initial(self) -> dict[str, Tensor]:
        return _copies(self.template)


def everything(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every parameter and buffer of a model once, including those that a state_dict leaves out."""
    return chain(model.named_parameters(), model.named_buffers())


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in everything(model)}


@torch.no_grad()
def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, value in everything(model):
        value.copy_(state[name])
