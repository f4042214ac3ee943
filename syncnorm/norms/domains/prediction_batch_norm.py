"""Batch norm that evaluates with statistics of the batch it predicts, alone or mixed with the running ones.

model = syncnorm.convert(model, "prediction_bn").eval()                     # the batch alone
model = syncnorm.convert(model, "prediction_bn", prior_count=16).eval()     # larger batches weigh more
model = syncnorm.convert(model, "alpha_bn", alpha=0.9).eval()               # a fixed mix

AdaBN is different: it replaces the running statistics by the target's (`syncnorm.recalibrate`).
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from syncnorm.moments import Moments
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class _MixedBatchNorm(SynchronisedBatchNorm):
    """Batch norm that evaluates with a mix of the running statistics (the source's) and the batch's.

        mean = s running_mean + (1 - s) batch_mean,   var = s running_var + (1 - s) batch_var
        y = (x - mean) / sqrt(var + eps) * weight + bias

    with a share s that the subclass chooses for a batch of n samples. batch_var is M2 / (values - `correction`) where
    it is mixed, and biased where the batch counts alone. The gradient goes through the batch's statistics.
    """

    correction = 0

    def meets(self) -> bool:
        """Return whether this forward shares statistics: in evaluation too, for that goes by the batch."""
        return self.shares()

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...)."""
        if self.training:
            return self.by_batch(x)
        batch = Moments.of(x, (0, *range(2, x.dim())))
        if self.meets():
            batch = self.over_ranks(batch, x)
        share = self.source_share(x) if self.running_mean is not None else 0.0
        if share == 0.0:
            return self._by_batch_at_hand(x, batch)
        running_mean, running_var = self.running()
        mean = torch.lerp(batch.mean, running_mean.to(batch.mean.dtype), share)
        source = running_var.to(batch.mean.dtype)
        var = torch.lerp(batch.var(correction=self.correction), source, share)
        if self.correction:  # one value has no unbiased variance: the source's stays
            var = torch.where(batch.count > 1, var, source)
        return normalise(x, mean, var, self.eps, self.weight, self.bias)

    def _by_batch_at_hand(self, x: Tensor, batch: Moments) -> Tensor:
        if self.meets():
            self.check_count(x, x.numel() // self.num_features, batch.count, empty=False)
            return normalise(x, batch.mean, batch.var(), self.eps, self.weight, self.bias)
        if x.numel() < 2 * self.num_features:
            raise ValueError(
                f"{type(self).__name__}({self.num_features}) evaluates by the batch alone, and got an input of shape "
                f"{tuple(x.shape)}: a variance needs two values per channel. Give it more samples."
            )
        return self.by_batch_alone(x)

    @abstractmethod
    def source_share(self, x: Tensor) -> float:
        """Return s, the share of the running statistics, for a batch `x`."""


class PredictionBatchNorm(_MixedBatchNorm):
    """Batch norm that evaluates with the predicted batch's own statistics, or weighs them by its size.

        s = N / (N + n),   mean = s running_mean + (1 - s) batch_mean,   var likewise,
        y = (x - mean) / sqrt(var + eps) * weight + bias

    for n samples in the batch; the source counts as N = `prior_count` samples. 0, the default, is prediction-time
    batch norm: the batch alone. Evaluation changes no state; training is PyTorch's. A layer without running
    statistics uses the batch's for any N.

    With N above 0 both variances are unbiased, and a batch with one value per channel leaves the running one; with N
    = 0 the batch's is biased, as in training.

    Sources: Nado et al. (arXiv 2006.10963) for N = 0, from memory and not confirmed; Schneider et al. (arXiv
    2006.16971) for other N and the formula, whose released code mixes running variances at momentum 1, which PyTorch
    keeps unbiased.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine, track_running_stats: as in torch's layers.
        prior_count: N, in samples, at least 0.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given. The evaluated batch is, too.

    Raises:
        ValueError: an input of another number of channels; one value per channel where the batch alone counts.
    """

    correction = 1

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
        prior_count: float = 0.0,
    ) -> None:
        if not 0 <= prior_count < float("inf"):
            raise ValueError(f"prior_count is {prior_count}: it is a number of samples, at least 0.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.prior_count = prior_count

    def source_share(self, x: Tensor) -> float:
        """Return N / (N + n); 0 where both are 0."""
        return self.prior_count / (self.prior_count + self.samples(x)) if self.prior_count else 0.0

    def extra_repr(self) -> str:
        """Show the prior count after what every batch norm shows."""
        return f"{super().extra_repr()}, prior_count={self.prior_count}"


class AlphaBatchNorm(_MixedBatchNorm):
    """Batch norm that evaluates with a fixed mix of its running statistics and the batch's.

        mean = alpha running_mean + (1 - alpha) batch_mean,   var likewise,
        y = (x - mean) / sqrt(var + eps) * weight + bias

    Evaluation changes no state; training is PyTorch's. alpha = 1 is batch norm, alpha = 0 prediction-time batch norm.

    Source: alpha-BN (You, Li & Zhao, arXiv 2110.04065), from memory and not confirmed: alpha is the source's share,
    and variances are mixed as means are. The default is a choice made here.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine, track_running_stats: as in torch's layers.
        alpha: the share of the running statistics, from 0 to 1.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given. The evaluated batch is, too.

    Raises:
        ValueError: an input of another number of channels; one value per channel where the batch alone counts.
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
        alpha: float = 0.9,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}: it is the share of the running statistics, from 0 to 1.")
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.alpha = alpha

    def source_share(self, x: Tensor) -> float:
        """Return alpha, for a batch of any size."""
        return self.alpha

    def extra_repr(self) -> str:
        """Show alpha after what every batch norm shows."""
        return f"{super().extra_repr()}, alpha={self.alpha}"
