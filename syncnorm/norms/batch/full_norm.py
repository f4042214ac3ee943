"""Full normalisation: normalise with the data set's moments, estimated from the batches so far.

model = syncnorm.convert(model, "full_norm")
"""

from __future__ import annotations

import torch
from torch import Tensor

from syncnorm.moments import acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.recomputation import refuse_recomputation
from syncnorm.norms.core.running import moved
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm


class FullNorm(SynchronisedBatchNorm):
    """Batch norm that trains with the values of running moments and the gradients of the batch's moments.

    Batch norm's objective contains the batch's moments, so it depends on how batches are formed; this objective
    contains the data set's. Compositional stochastic gradient descent estimates such an objective f(g(w)), with g the
    expected moments: a running estimate of g gives the value, and the batch gives the derivative:

        u <- (1 - momentum) u + momentum u_B,   u = (E[x], E[x^2])
        y = (x - u_1) / sqrt(u_2 - u_1^2 + eps) * weight + bias,   with du taken as du_B

    Evaluation is batch norm's with these estimates. running_var = u_2 - u_1^2 is therefore biased, and includes the
    variance of the batches' means, which batch norm's leaves out. It is updated as

        var <- (1 - a) var + a var_B + a (1 - a) (mean_B - mean)^2,   a = momentum

    which is the same without the loss of precision of a difference of squares.

    Source: Lian & Liu (arXiv 1810.06177). Only the article's abstract was available: the update above is
    compositional gradient descent as in the authors' earlier work, and is not confirmed for the layer.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variance.
        momentum: weight of the newest moments; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: fewer than two values per channel in training; an input with another number of channels; a
            recomputation under activation checkpointing, which would see other estimates.
    """

    needs_statistics = "normalises with running moments"

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); in training, update the running moments first."""
        if not self.training:
            return self.by_running(x)
        refuse_recomputation("FullNorm")
        batch = self.moments(x.to(acc_dtype(x.dtype)))
        mean, var = self._update_running(batch.mean.detach(), batch.var().detach())
        check_divisor(self, self.num_features, var)
        # Zeros, with the derivatives of the batch's E[x] and E[x^2] - 2 u_1 E[x] = var_B + (mean_B - u_1)^2 - u_1^2.
        dmean = batch.mean - batch.mean.detach()
        dvar = batch.var() - batch.var().detach() + 2 * (batch.mean.detach() - mean) * dmean
        mean, var = (mean + dmean).unsqueeze(0), (var + dvar).unsqueeze(0)
        return normalise(x, mean, var, self.eps, self.weight, self.bias)

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Update the running moments with a batch's, and return them in the batch's type."""
        running_mean, running_var = self.running()
        if not self.moves():
            return running_mean.to(mean.dtype), running_var.to(mean.dtype)
        newest = torch.as_tensor(self.count(), dtype=mean.dtype)
        away = mean - running_mean
        new_mean = moved(running_mean, mean, newest)
        new_var = moved(running_var, var, newest) + newest * (1 - newest) * away.square()
        running_mean.copy_(new_mean)
        running_var.copy_(new_var)
        return new_mean, new_var
