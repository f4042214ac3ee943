"""Batch norm that learns a new user's statistics from that user's stream while it predicts.

model = syncnorm.convert(model, "online_bn", prior_count=32).eval()
with syncnorm.stream(model):                    # one user, forgotten at the end unless keep=True
    for x in batches:
        logits = model(x)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.moments import Moments
from syncnorm.norms.core.batch_norm import batch_norm
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.shapes import check_values
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class OnlineBatchNorm(SynchronisedBatchNorm):
    """Batch norm that, inside `syncnorm.stream`, evaluates with the statistics of the stream so far.

    Estimator: the running statistics (the source's), counted as N samples, merged with the moments of the stream so
    far, including the current batch:

        (mean, var) = moments of (N samples at running_mean, running_var) and (stream),   var biased
        y = (x - mean) / sqrt(var + eps) * weight + bias

    The user's own statistics take over as the stream goes on, and the variance includes the spread between the two
    means. With a `horizon` of h samples, everything before the current batch counts as at most h samples, so it is
    forgotten exponentially. Statistics carry no gradient. Outside a stream, and in training, this is PyTorch's layer;
    the source trains with batches of one user each.

    Source: Mazankiewicz, Böhm & Bergés (arXiv 2005.12178), not confirmed: the incremental estimate and the trade-off
    between old and new statistics are theirs; the recursion, the prior and the horizon are choices made here.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine: as in torch's layers.
        track_running_stats: must be True: a stream starts from them.
        prior_count: N, in samples of the batch's length, at least 0. 0 leaves the source out.
        horizon: h, in samples; None forgets nothing.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given. A stream is then that of all ranks.

    Raises:
        ValueError: an input with another number of channels; one value per channel with no other statistics; a
            recomputation under activation checkpointing inside a stream.
    """

    needs_statistics = "starts from running statistics"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        sync: bool | None = None,
        process_group: Group = None,
        prior_count: float = 16.0,
        horizon: float | None = None,
    ) -> None:
        if not 0 <= prior_count < float("inf"):
            raise ValueError(f"prior_count is {prior_count}: it is a number of samples, at least 0.")
        if horizon is not None and not horizon > 0:
            raise ValueError(f"horizon is {horizon}: it is a number of samples, above 0, or None.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.prior_count, self.horizon = prior_count, horizon
        self.streaming = False
        self.seen: Moments | None = None
        self.together: tuple[Tensor, Tensor] | None = None

    def meets(self) -> bool:
        """Return whether this forward shares statistics: inside a stream too."""
        return (self.training or self.streaming) and self.shares()

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if self.training:
            return self.by_batch(x)
        if not self.streaming or (x.numel() == 0 and not self.meets()):
            return self.by_running(x)
        refuse_recomputation("OnlineBatchNorm")
        mean, var = self._merge(x)
        return batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)

    @torch.no_grad()
    def _merge(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Update the stream's moments; return the mean and variance of source and stream together, (C,) each."""
        running_mean, running_var = self.running()
        batch, positions = self._batch(x, empty=self.seen is not None or self.prior_count > 0)
        if self.seen is not None:
            batch = _at_most(self.seen, self.horizon, positions).merge(batch)
        self.seen = batch
        count = torch.full_like(batch.count, self.prior_count * positions)
        source_mean, source_var = running_mean.to(batch.mean.dtype), running_var.to(batch.mean.dtype)
        together = Moments(count, source_mean, source_var * count.to(source_var.dtype)).merge(batch)
        self.together = together.mean.to(running_mean.dtype), together.var().to(running_var.dtype)
        return self.together

    def _batch(self, x: Tensor, empty: bool) -> tuple[Moments, float]:
        """Return the moments of the batch `x`, and the positions of a sample; `empty`: it may have no variance."""
        batch, positions = Moments.of(x, (0, *range(2, x.dim()))), prod(x.shape[2:])
        if not self.meets():
            if not empty:
                check_values(self, self.num_features, x)
            return batch, positions
        batch = self.over_ranks(batch, x)
        if not empty:
            self.check_count(x, x.numel() // self.num_features, batch.count, empty=False)
        samples = self.samples(x)
        return batch, float(batch.count) / samples if samples else positions

    @torch.no_grad()
    def leave_stream(self, keep: bool) -> None:
        """Forget the stream; with `keep`, first copy the last batch's statistics to the running ones."""
        if keep and self.together is not None:
            for running, new in zip(self.running(), self.together, strict=True):
                running.copy_(new)
        self.streaming, self.seen, self.together = False, None, None

    def extra_repr(self) -> str:
        """Show the prior count and the horizon after what every batch norm shows."""
        return f"{super().extra_repr()}, prior_count={self.prior_count}, horizon={self.horizon}"


@contextmanager
def stream(model: nn.Module, keep: bool = False) -> Iterator[None]:
    """Let the "online_bn" layers of `model` follow one user's stream; at the end they forget or keep it.

    With `keep`, the statistics used for the last batch become the layer's running statistics: source and stream
    merged, or the stream alone with prior_count=0. running_var is then biased, as inside the stream, whereas training
    leaves an unbiased one. num_batches_tracked does not change. The next stream starts from these statistics and
    counts them as `prior_count` samples, however many they came from. A layer that no batch reached keeps its running
    statistics, and so does every layer if the stream ends in an exception.

    Raises:
        UserError: the model has no such layer.
    """
    layers = [module for module in model.modules() if isinstance(module, OnlineBatchNorm)]
    if not layers:
        raise UserError("the model has no layer that follows a stream: convert it to 'online_bn' first.")
    finished = False
    try:
        for layer in layers:
            layer.streaming = True
        yield
        finished = True
    finally:
        for layer in layers:
            layer.leave_stream(keep and finished)


def _at_most(seen: Moments, horizon: float | None, positions: float) -> Moments:
    """Return `seen` with its count limited to `horizon` samples; mean and variance stay."""
    if horizon is None:
        return seen
    kept = (horizon * positions / seen.count).clamp(max=1.0)
    return replace(seen, count=seen.count * kept, m2=seen.m2 * kept.to(seen.m2.dtype))
