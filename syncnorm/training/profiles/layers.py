"""What a model's layers are, in the words of a reader who does not know its code: the 4th batch norm, 32 channels."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from syncnorm.training.profiles.effective_samples import norm_layers

TYPES: tuple[tuple[type[nn.Module], str], ...] = (
    (_BatchNorm, "batch norm"),
    (_InstanceNorm, "instance norm"),
    (nn.GroupNorm, "group norm"),
    (nn.LayerNorm, "layer norm"),
    (nn.RMSNorm, "RMS norm"),
    (_ConvTransposeNd, "transposed convolution"),
    (_ConvNd, "convolution"),
    (nn.Linear, "linear layer"),
)
"""Words for layers; the first that fits."""
SIZES = ("num_features", "num_channels", "out_channels", "out_features")
"""Attributes with a layer's number of channels; the first that it has."""


def described_layers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return what the norms, convolutions and linear layers of a model are, by name.

    Each is {"type": words, "depth": place, "channels": number}. The type of every layer with the state of batch norm
    is "batch norm", whatever its formula; a norm of another kind has its class. Depth counts from 1, in the order in
    which the model lists its layers: a norm among all norms, any other layer among those of its type. Channels are
    those of its output, and left out where the layer does not say them.
    """
    norms = set(norm_layers(model).values())
    counts: dict[str, int] = {}
    found = {}
    for name, layer in model.named_modules():
        words = _type(layer)
        if layer not in norms and not words:
            continue
        counted = "norm" if layer in norms or words.endswith("norm") else words
        counts[counted] = counts.get(counted, 0) + 1
        channels = next(
            (int(getattr(layer, size)) for size in SIZES if isinstance(getattr(layer, size, None), int)), 0
        )
        found[name] = {"type": words or type(layer).__name__, "depth": counts[counted]}
        if channels:
            found[name]["channels"] = channels
    return found


def _type(layer: nn.Module) -> str:
    """Return words for a layer; nothing for what is none of these."""
    if isinstance(layer, nn.GroupNorm) and layer.num_groups == 1:
        return "layer norm"
    return next((words for kind, words in TYPES if isinstance(layer, kind)), "")
