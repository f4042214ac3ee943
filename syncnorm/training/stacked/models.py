"""Models of one architecture as one: their entries stacked, one row per model, and a step of all rows under vmap."""

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from syncnorm.training.learner import Learner
from syncnorm.training.stacked.layers import ModelsTogether


class Step(nn.Module):
    """A learner's training step as a module's forward, for `torch.func.functional_call`: (x, y) to the loss."""

    PREFIX = "classifier.model."
    """Prefix of the model's parameter names in this module."""

    def __init__(self, classifier: Learner) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of images (N, C, H, W) and labels (N,), or the targets of another task."""
        loss = self.classifier.training_step((x, y), 0)
        self.classifier.forget_losses(last=1)
        return loss


class Rowwise:
    """The training step of K models, whose entries come as rows; the learner's own model lends its layers alone.

    A model's loss does not depend on the others' entries, so the gradient of the sum of all losses holds each model's
    own.
    """

    def __init__(self, learner: Learner) -> None:
        self._step, self._tied = Step(learner), tied(learner.model)

    def losses(self, entries: Mapping[str, Tensor], x: Tensor, y: Tensor, together: ModelsTogether) -> Tensor:
        """Return the losses (R,) of x (B, R, ...) and y (R, B, ...) by the models with these entries (R, ...).

        Buffers among the entries are updated in place.
        """
        losses: Tensor
        with together:
            losses = torch.vmap(self._run, (0, (1, 0)))(self._named(entries), (x, y))
        return losses

    def loss(self, entries: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """Return the same for a single model, (1,), without vmap, which then costs more than it saves."""
        inputs = {name: value[0] for name, value in self._named(entries).items()}
        return self._run(inputs, (x[:, 0], y[0])).unsqueeze(0)

    def _named(self, entries: Mapping[str, Tensor]) -> dict[str, Tensor]:
        values = {**entries, **{name: entries[known] for name, known in self._tied.items()}}
        return {Step.PREFIX + name: value for name, value in values.items()}

    def _run(self, values: dict[str, Tensor], inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Call the step with these parameters and buffers; buffers that it reassigns are copied back."""
        after = dict(values)
        # PyTorch's handling of tied weights would leave this step's values in a module that has two names.
        loss: Tensor = functional_call(self._step, after, inputs, tie_weights=False)
        with torch.no_grad():
            for name, value in values.items():
                if after[name] is not value:
                    value.copy_(after[name])
        return loss


def gradients_of(objective: Tensor, leaves: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """Return the gradients of an objective by parameter, without those that it does not depend on.

    The backward pass is that of the objective times `scale`, by which the gradients are then divided.
    """
    found = torch.autograd.grad(scale * objective, list(leaves.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(leaves, found, strict=True) if gradient is not None}
    return gradients if scale == 1 else {name: gradient / scale for name, gradient in gradients.items()}


def entries_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, including buffers that a state_dict leaves out."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def stack(values: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the values as a new (K, ...) tensor of the type and device of `like`."""
    if all(value is values[0] for value in values):  # e.g. a server sent the same tensor to all
        return values[0].to(like).expand(len(values), *like.shape).clone()
    return torch.stack([value.to(like) for value in values])


def keeping(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers with more state than parameters and buffers, by name, such as past steps.

    Models in one batched step cannot have it of their own. (`training.checkpoints` says how a layer has it.)
    """
    return {
        name: layer
        for name, layer in model.named_modules()
        if hasattr(layer, "remember") or type(layer).get_extra_state is not nn.Module.get_extra_state
    }


def tied(model: nn.Module) -> dict[str, str]:
    """Return the additional names of tensors that several modules share, and the name under which each is listed."""
    first: dict[int, str] = {}
    found = {}
    for where, module in model.named_modules():
        parts = module.named_parameters(where, recurse=False, remove_duplicate=False)
        for name, value in chain(parts, module.named_buffers(where, recurse=False, remove_duplicate=False)):
            known = first.setdefault(id(value), name)
            if known != name:
                found[name] = known
    return found
