"""What the rest of syncnorm needs to know about a norm: its row in `syncnorm.norms.registry`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

from torch import Tensor, nn

Layer = Callable[..., nn.Module]
OnWeight = Callable[[nn.Module, Mapping[str, Any]], nn.Module]
Fold = Callable[[Any], tuple[Tensor, Tensor]]
Evaluates = Literal["running", "corrected", "domain", "sample", "nothing"]
WorldFact = Literal["batch", "domains"]
OverRanks = bool | Literal["sync"]

NO_FOLD = "its row does not say how it folds (register_norm(..., fold=...) does)"

BY_RANK = "its row does not say how ranks share them (register_norm(..., over_ranks='sync') does)"


@dataclass(frozen=True)
class NormSpec:
    """A norm, described for the code that builds, converts, trains, folds or evaluates it.

    The defaults are safe for an unknown layer: it gets the batch that it would have on one device, is never widened
    to several ranks, and is not folded.
    """

    layer: Layer
    """Builds the layer: a class or function (num_features, **options) -> torch.nn.Module. Its signature gives the
    norm's options."""
    by_ndim: Mapping[int, Layer] = field(default_factory=dict)
    """Builders for spatial dimensions that need another class than `layer`."""
    sees_batch: bool = True
    """Whether, in training, a sample's output depends on the other samples of the batch."""
    over_ranks: OverRanks = False
    """Whether it normalises over the batch of all ranks, not of one device: True, False, or "sync" if its options
    `sync` and `process_group` say so. Federated clients cannot use such a norm."""
    by_rank: str = BY_RANK
    """Why ranks cannot share its statistics, for a norm that sees the batch and has no such options: the end of a
    sentence."""
    by_channel: bool = False
    """Whether R virtual ranks of C channels may run as one layer of R * C channels. The layer must then treat each
    channel separately, read C from `num_features`, and have parameters of shape (C,) and buffers of shape (..., C) or
    (). Otherwise each virtual rank has a copy of the model."""
    on_ranks: str | None = None
    """The norm that computes this one on R virtual ranks and keeps each rank's running statistics, so that they can
    be pooled. It takes the options of this norm, virtual_ranks=R and buffers="pooled"."""
    weight: OnWeight | None = None
    """For a norm of convolution weights: takes a convolution and the norm's options, and returns a convolution that
    shares its parameters and normalises its weight. `layer` then builds the layer that replaces batch norm beside
    it."""
    evaluates: Evaluates = "running"
    """Which statistics normalise in evaluation: "running" (from training), "corrected" (running ones corrected by the
    current sample, batch or stream), "domain" (the running ones of the sample's domain), "sample" (the sample's own),
    or "nothing"."""
    fold: Fold | str | None = NO_FOLD
    """How it folds into the layer before it: a function that takes the norm layer and returns the scale and the shift
    that it applies in evaluation, (C,) each, in float64. Or a text that says why it cannot fold. None: fold reports
    do not mention it."""
    from_world: Mapping[str, WorldFact] = field(default_factory=dict)
    """Options that a run's world fills in unless given. Each maps to "batch" (the number of samples that share
    statistics in training) or "domains" (the number of training domains)."""

    summary: str = ""
    """What it is, in a line, where the layer's documentation does not say it."""

    @property
    def side(self) -> Literal["activations", "weights"]:
        """What it normalises."""
        return "activations" if self.weight is None else "weights"

    def shares(self, options: Mapping[str, Any]) -> bool:
        """Return whether, with these options, it normalises over the batch of all ranks in training."""
        if self.over_ranks != "sync":
            return self.over_ranks
        given = options.get("sync", signature(self.layer).parameters["sync"].default)
        return options.get("process_group") is not None if given is None else bool(given)

    def by_device(self, options: Mapping[str, Any]) -> bool:
        """Return whether its training output depends on the batch of one device, not on that of all devices."""
        return self.sees_batch and not self.shares(options)

    def not_shared(self) -> str:
        """Return why `sync` and `process_group` say nothing to it, as the end of a sentence; "" where they do."""
        if self.over_ranks == "sync":
            return ""
        if self.over_ranks:
            return "always shares statistics between ranks"
        if not self.sees_batch:
            return "takes no statistics over a batch, so ranks have nothing to share"
        return f"keeps statistics by rank, since {self.by_rank}"

    @property
    def adapts(self) -> bool:
        """Whether it adapts to the data it evaluates, so that no other adaptation should replace it at test time."""
        return self.evaluates == "corrected"
