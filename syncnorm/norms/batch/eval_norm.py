"""Batch norm that corrects its running statistics for each evaluated sample; it trains as batch norm.

model = syncnorm.convert(model, "eval_norm", batch=2)           # as expected in a batch of 2 with this sample
model = syncnorm.convert(model, "example_bn", alpha=0.1)        # a fixed share for the sample
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.running import moved, newest_weight
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class _SampleCorrectedBatchNorm(SynchronisedBatchNorm):
    """Batch norm that evaluates each sample with a mix of the running statistics and its own, (N, C) each.

    Training is PyTorch's batch norm. In evaluation a sample's output does not depend on its batch.
    """

    needs_statistics = "corrects running statistics in evaluation"

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if self.training:
            y = self.by_batch(x)
            if self.moves():
                self._see(x)
            return y
        mean, var = self.corrected(*_of_each(x))
        return normalise(x, mean, var, self.eps, self.weight, self.bias)

    @abstractmethod
    def corrected(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and variance for each sample, given its own (biased), (N, C) each."""

    def _see(self, x: Tensor) -> None:
        """Update a subclass's further statistics from a training batch."""


def _of_each(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and biased variance of each sample of x (N, C, ...), (N, C) each."""
    flat = x.to(acc_dtype(x.dtype))
    flat = flat.flatten(2) if flat.dim() > 2 else flat.unsqueeze(2)
    mean = flat.mean(2)
    return mean, (flat - mean.unsqueeze(2)).square().mean(2)


class ExampleWeighedBatchNorm(_SampleCorrectedBatchNorm):
    """Batch norm that evaluates each sample with moments in which the sample has a fixed share `alpha`.

        E[x] = (1 - alpha) running E[x] + alpha E_i[x],   the same for E[x^2],   var = E[x^2] - E[x]^2

    which is mean = (1 - alpha) mu + alpha mu_i and

        var = (1 - alpha) running_var + alpha var_i + alpha (1 - alpha) (mu_i - mu)^2

    with the sample's mu_i and biased var_i over (H, W). The authors' code keeps a running mean of E[x^2]; here
    running_var is PyTorch's, the running mean of the batches' unbiased variances.

    Source: Summers & Dinneen (Four Things Everyone Should Know to Improve Batch Normalization, arXiv 1906.03548).

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine: as in torch's layers.
        alpha: share of the sample, from 0 (batch norm) to 1 (instance norm). The default is a choice made here:
            choose it on validation data.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: alpha out of range; fewer than two values per channel in training; an input with another number of
            channels.
    """

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
        alpha: float = 0.1,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: it is a share, from 0 to 1.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.alpha = alpha

    def corrected(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments that include the sample's share."""
        running_mean, running_var = self.running()
        away = mean - running_mean.to(mean.dtype)
        common = torch.lerp(running_var.to(var.dtype), var, self.alpha)
        return mean - (1 - self.alpha) * away, common + self.alpha * (1 - self.alpha) * away.square()

    def extra_repr(self) -> str:
        """Show the share after what every batch norm shows."""
        return f"{super().extra_repr()}, alpha={self.alpha}"


class EvalNorm(_SampleCorrectedBatchNorm):
    """Batch norm that evaluates a sample with the expected statistics of a training batch that contains it.

    For sample i with mean mu_i and biased variance s_i^2 over (H, W), in a batch with n - 1 others drawn at random,

        E[mean | i] = mu_i / n + (n - 1) / n mu
        E[var | i] = s_i^2 / n + (n - 1) / n E[s^2] + (n - 1) / n^2 (mu_i - mu)^2 + ((n - 1) / n)^2 Var(mu_j)

    with the population's mu = running_mean, E[s^2] = running_within and Var(mu_j) = running_between, the variance of
    the samples' means; the latter two are updated with `momentum` in training, unbiased over the samples. n = `batch`
    is the batch size of training: the smaller it is, the more training differs from running statistics.

    Until the layer has seen a training batch, all running variance counts as variance within samples: a converted
    layer, or one that loads a batch norm's state, knows only the sum of the two. `recalibrate` estimates them too.

    Source: Singh & Shrivastava (EvalNorm, arXiv 1904.06031), of which only the abstract was available. The
    conditional expectations are derived here; the article's own parametrisation is not confirmed, and the blend that
    it learns with an auxiliary loss is not implemented.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine: as in torch's layers.
        batch: n, number of samples that share statistics in training, at least 1.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: fewer than two values per channel in training; an input with another number of channels; a `batch`
            below 1.
    """

    running_within: Tensor
    running_between: Tensor
    spreads_seen: Tensor
    SPREADS = ("running_within", "running_between", "spreads_seen")

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
        batch: int,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch is {batch}: it must be at least 1.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.batch = batch
        for name in ("running_within", "running_between"):
            self.register_buffer(name, torch.zeros(num_features, device=device, dtype=dtype))
        self.register_buffer("spreads_seen", torch.zeros((), dtype=torch.long, device=device))

    def start_statistics(self) -> None:
        """Reset: mean 0, variance 1, and nothing seen of the variances within and between samples."""
        super().start_statistics()
        for name in self.SPREADS:
            if (own := self._buffers.get(name)) is not None:
                own.zero_()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        own = [prefix + name for name in self.SPREADS]
        if prefix + "running_var" in state_dict and state_dict.keys().isdisjoint(own):  # state of a plain batch norm
            for start in (self.running_within, self.running_between, self.spreads_seen):
                start.zero_()
            _, _, missing_keys, *_ = args
            missing_keys[:] = [key for key in missing_keys if key not in own]

    def corrected(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected moments of a batch that contains the sample."""
        running_mean, running_var = self.running()
        own, others = 1 / self.batch, (self.batch - 1) / self.batch
        away = mean - running_mean.to(mean.dtype)
        known = self.spreads_seen > 0
        within = torch.where(known, self.running_within, running_var).to(var.dtype)
        expected = own * var + others * within + own * others * away.square()
        return mean - others * away, expected + others**2 * self.running_between.to(var.dtype)

    @torch.no_grad()
    def _see(self, x: Tensor) -> None:
        """Update the variances within and between samples; the latter needs two samples."""
        samples = self.moments_of_samples(x)
        if self.meets():
            samples = self.over_ranks(samples, x)
        several = samples.count >= 2
        first = several & (self.spreads_seen == 0)
        self.spreads_seen.add_(several)
        newest = newest_weight(self.momentum, self.spreads_seen)
        for running, new in zip(
            (self.running_within, self.running_between), self.within_and_between(samples), strict=True
        ):
            follows = torch.where(first, new, moved(running, new, newest))  # starts at the first value
            running.copy_(torch.where(several, follows, running))

    @staticmethod
    def moments_of_samples(x: Tensor) -> Moments:
        """Return the moments, over the samples of `x`, of each one's mean and biased variance together, (2 C,)."""
        mean, var = _of_each(x)
        return Moments.of(torch.cat([mean, var], 1), 0)

    @staticmethod
    def within_and_between(samples: Moments) -> tuple[Tensor, Tensor]:
        """Return E[s^2] and the unbiased Var(mu_j), (C,) each, from such moments."""
        return samples.mean.chunk(2)[1], samples.var(correction=1).chunk(2)[0]

    @staticmethod
    def entries_of(samples: Moments) -> dict[str, Tensor]:
        """Return the statistics that such moments give, by name; of one sample, nothing is known."""
        known = samples.count > 1
        within, between = (torch.where(known, part, 0.0) for part in EvalNorm.within_and_between(samples))
        return {"running_within": within, "running_between": between, "spreads_seen": known.long()}

    def extra_repr(self) -> str:
        """Show n after what every batch norm shows."""
        return f"{super().extra_repr()}, batch={self.batch}"
