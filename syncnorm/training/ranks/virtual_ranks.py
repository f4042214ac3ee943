"""Virtual ranks, in one process, for any norm that depends on the batch of one device.

`GhostBatchNorm` is batch norm on virtual ranks. For other norms there are two ways, with the same result:

- If a norm treats every channel separately, R ranks of C channels are one layer of R * C channels.
- Otherwise each rank has a copy of the model. Cross-iteration batch norm, for example, follows the weight of the
  convolution before it.

Either way the ranks share their parameters, and each has its own statistics. The gradient of the batch's mean loss is
then the mean of the ranks' gradients, as in DDP on R devices without `broadcast_buffers`. (A norm that stores
gradients stores 1 / R of those on a device.) Evaluation uses rank 0's statistics, which DDP would save.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from syncnorm.errors import UserError
from syncnorm.norms import norm_spec
from syncnorm.norms.core.domain_context import domain_of_part
from syncnorm.norms.core.shapes import in_layout_of
from syncnorm.norms.weight.weight_standardization import CONVOLUTIONS
from syncnorm.surgery.conversion.convert import converted_layers
from syncnorm.surgery.layers.fused import same_layer, without_rest
from syncnorm.surgery.layers.replace import copied, replace_modules


def on_virtual_ranks(model: nn.Module, norm: str, ranks: int) -> nn.Module:
    """Return a module that trains `model`, converted to `norm`, on `ranks` virtual ranks; it contains the model.

    Raises:
        UserError: a model that must be copied but cannot be; what `check_by_channel` raises.
    """
    if not norm_spec(norm).by_channel:
        return ModelCopies(model, ranks)
    check_by_channel(model, norm)
    return replace_modules(model, {layer: RanksAsChannels(layer, ranks) for layer in _norms(model)})


def check_by_channel(model: nn.Module, norm: str) -> None:
    """Raise `UserError` if the layers of `norm` in `model` do not have the properties that `by_channel` promises."""
    for layer in (without_rest(layer)[0] for layer in _norms(model)):
        channels = getattr(layer, "num_features", None)
        shapes = {name: p.shape for name, p in layer.named_parameters() if p.shape != (channels,)}
        shapes |= {name: b.shape for name, b in layer.named_buffers() if b.dim() and b.shape[-1] != channels}
        wrong = "no attribute num_features" if channels is None else ""
        for name, shape in shapes.items():
            wrong = wrong or f"'{name}' of shape {tuple(shape)} for {channels} channels"
        if wrong:
            raise UserError(
                f"norm '{norm}' is registered with by_channel=True, but its layer has {wrong}: parameters have to be "
                "(C,), and buffers (..., C) or single numbers. Leave by_channel out."
            )


def _norms(model: nn.Module) -> list[nn.Module]:
    """Return the norm layers that `convert` put into `model`, without convolutions whose weight is normalised."""
    return [layer for layer in converted_layers(model) if not isinstance(layer, CONVOLUTIONS)]


def rank_0(model: nn.Module) -> nn.Module:
    """Return rank 0's model from the result of `on_virtual_ranks`; any other model is returned unchanged."""
    if isinstance(model, ModelCopies):
        return model.copies[0]
    widened = [module for module in model.modules() if isinstance(module, RanksAsChannels)]
    return replace_modules(model, {module: module.rank_0() for module in widened})


class RanksAsChannels(nn.Module):
    """A norm layer on R virtual ranks; in training, rank r normalises samples r, r + R, r + 2R, ... of the batch.

    A batch (b * R, C, ...) is (b, R * C, ...) in the same memory, so one layer of R * C channels normalises it.

    Args:
        layer: a layer that treats every channel separately; it becomes rank 0's.
        ranks: R.

    Raises:
        UserError: in training, a batch whose number of samples N is not a multiple of R.
    """

    def __init__(self, layer: nn.Module, ranks: int) -> None:
        super().__init__()
        self.layer, self.ranks = same_layer(layer), ranks  # `layer` itself is replaced, and must not run
        self.channels = int(layer.num_features)  # type: ignore[arg-type]
        norm, self._rest = without_rest(layer)
        self.wide = copy_sharing_parameters(norm)
        self.wide.num_features = ranks * self.channels  # type: ignore[assignment]
        for name, buffer in norm.named_buffers():
            if buffer.dim():
                setattr(self.wide, name, buffer.repeat(*[1] * (buffer.dim() - 1), ranks))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...), N = b * R in training."""
        if not self.training:
            y: Tensor = self.rank_0()(x)
            return y
        check_samples(x, self.ranks)
        as_channels = x.reshape(len(x) // self.ranks, self.ranks * self.channels, *x.shape[2:])
        own = dict(self.layer.named_parameters())
        parameters = {name: own[name].repeat(self.ranks) for name, _ in self.wide.named_parameters()}
        wide: Tensor = functional_call(self.wide, parameters, (as_channels,))
        y = in_layout_of(wide.reshape(x.shape), x)
        return y if self._rest is None else self._rest(self.layer, y)

    @torch.no_grad()
    def rank_0(self) -> nn.Module:
        """Return the layer with rank 0's statistics."""
        seen = dict(self.wide.named_buffers())
        for name, buffer in self.layer.named_buffers():
            if name in seen:
                buffer.copy_(seen[name][..., : self.channels] if buffer.dim() else seen[name])
        return self.layer


class ModelCopies(nn.Module):
    """R copies of a model with shared parameters; in training, rank r's copy takes samples r, r + R, r + 2R, ...

    Args:
        model: becomes rank 0's copy; takes (N, ...) and returns (N, ...).
        ranks: R.

    Raises:
        UserError: a model that `copy.deepcopy` cannot copy; in training, a batch whose number of samples N is not a
        multiple of R.
    """

    def __init__(self, model: nn.Module, ranks: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList([model, *(copy_sharing_parameters(model) for _ in range(ranks - 1))])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of each sample's rank, in the order of `x`; in evaluation, rank 0's output."""
        if not self.training:
            y: Tensor = self.copies[0](x)
            return y
        ranks = len(self.copies)
        check_samples(x, ranks)
        by_rank = []
        for rank, model in enumerate(self.copies):
            with domain_of_part(rank, ranks):
                by_rank.append(model(x[rank::ranks]))
        return torch.stack(by_rank, dim=1).flatten(0, 1)


def copy_sharing_parameters(module: nn.Module) -> nn.Module:
    """Return a copy of `module` that shares only the parameters."""
    try:
        return copied(module, {id(parameter): parameter for parameter in module.parameters()})
    except Exception as error:  # a user's module may contain anything
        kind = type(module).__name__
        raise UserError(
            f"virtual ranks need a copy of the model each, and {kind} cannot be copied ({error}): write "
            "engine='torchrun', or train on one rank."
        ) from error


def check_samples(x: Tensor, ranks: int) -> None:
    """Raise `UserError` if the ranks would not have equally many samples."""
    if len(x) % ranks:
        raise UserError(
            f"{len(x)} samples do not divide over {ranks} virtual ranks: give each rank as many, for example by "
            "dropping the last incomplete batch."
        )
