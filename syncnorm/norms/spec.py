"""What the rest of syncnorm needs to know about a norm: the row of `syncnorm.norms.registry` that it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Layer = Callable[..., nn.Module]
OnWeight = Callable[[nn.Module, Mapping[str, Any]], nn.Module]
Fold = Callable[[Any], tuple[Tensor, Tensor]]
Evaluates = Literal["running", "corrected", "domain", "sample", "nothing"]
WorldFact = Literal["batch", "domains"]

NO_FOLD = "its row does not say how it folds (register_norm(..., fold=...) does)"


@dataclass(frozen=True)
class NormSpec:
    """A norm, as everything that builds, converts, trains, folds or evaluates one reads it.

    The defaults are safe for a layer that nothing is known about: it is given the batch that it would have on a
    device, is never widened, and is not folded.
    """

    layer: Layer
    """Builds the layer: a class or function (num_features, **options) -> torch.nn.Module. Its signature says which
    options the norm has."""
    by_ndim: Mapping[int, Layer] = field(default_factory=dict)
    """What builds it for other spatial dimensions than `layer` does, where that depends on them."""
    sees_batch: bool = True
    """Whether, in training, what it makes of a sample depends on the other samples of the batch."""
    over_ranks: bool = False
    """Whether its batch is that of all ranks, and not of one device. Clients are no ranks and cannot have it."""
    by_channel: bool = False
    """Whether R virtual ranks of C channels may be laid out as one layer of R * C channels. The layer then has to
    treat each channel by itself, read C from `num_features`, and hold parameters of shape (C,) and buffers of shape
    (..., C) or (). Otherwise each virtual rank has a copy of the model."""
    on_ranks: str | None = None
    """The norm that plays this one on R ranks and keeps the running statistics of each, so that they can be pooled.
    It takes the options of this norm, virtual_ranks=R and buffers="pooled"."""
    weight: OnWeight | None = None
    """For a norm that sits in the weights of convolutions: takes a convolution and the norm's options, and returns a
    convolution with the very same parameters whose weight is normalised. `layer` then builds what replaces batch norm
    beside it."""
    evaluates: Evaluates = "running"
    """Whose statistics normalise in evaluation: the "running" ones of training; those "corrected" by the sample,
    batch or stream at hand; the running ones of the sample's "domain"; those of the "sample" alone; or "nothing"."""
    fold: Fold | str | None = NO_FOLD
    """How it folds into the layer before it: takes the layer, returns what it multiplies its input by in evaluation,
    and what it then adds, (C,) each, in float64. Or in words why it cannot. None: no report speaks of it."""
    from_world: Mapping[str, WorldFact] = field(default_factory=dict)
    """Options that a run's world fills in unless they are given: by option, "batch" (the number of samples that share
    statistics in training) or "domains" (the number of domains that train)."""

    @property
    def side(self) -> Literal["activations", "weights"]:
        """What it normalises."""
        return "activations" if self.weight is None else "weights"

    @property
    def by_device(self) -> bool:
        """Whether what it does in training depends on the batch of one device, and not on that of all."""
        return self.sees_batch and not self.over_ranks

    @property
    def adapts(self) -> bool:
        """Whether it adapts to what it evaluates, so that no further adaptation should replace it at test time."""
        return self.evaluates == "corrected"
