"""Mix the styles of a batch's samples in training, so that a network relies less on the style of any one domain.

model = syncnorm.convert(model, "mixstyle", p=0.5)                      # after every batch norm, which stays
model.layer1 = syncnorm.convert(model.layer1, "mixstyle")               # only in one part of the model
nn.Sequential(block1, syncnorm.norms.MixStyle(64), block2)              # between blocks, as in the source
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from syncnorm._torch import beta_samples
from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.domain_context import current_domain, no_domain
from syncnorm.norms.core.layer import NormLayer, check_eps
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.shapes import by_sample, check_positions, positions_problem
from syncnorm.norms.core.synchronised import SynchronisedBatchNorm

Partners = Literal["random", "cross_domain"]


class MixStyle(NormLayer):
    """MixStyle: in training, mix each sample's channel means and standard deviations with another sample's.

    For sample i and its partner j, with lambda_i ~ Beta(alpha, alpha),

        sigma' = lambda sigma_i + (1 - lambda) sigma_j,   mu' = lambda mu_i + (1 - lambda) mu_j
        y_i = (x_i - mu_i) / sigma_i * sigma' + mu'

    where mu and sigma = sqrt(var + eps) (unbiased) are those of a sample's channel over its positions, without a
    gradient. A batch is mixed with probability p. Evaluation is the identity. This is not a normalisation and has no
    parameters: it goes between blocks, in addition to a model's norms (`MixStyleBatchNorm` combines the two). Random
    numbers come from PyTorch's CPU generator. `mix` chooses the partners:

        "random"        a random permutation of the batch;
        "cross_domain"  drawn for each sample uniformly and independently from the batch's samples of other domains;
                        `syncnorm.domain(ids)` gives the domains. A batch of one domain is not mixed.

    Source: Zhou, Yang, Qiao & Xiang (arXiv 2104.02008): formula and random shuffle. Their code's shuffle across
    domains takes a batch of two domains, half each, and pairs each half with a permutation of the other. Here a
    sample's partner has the same distribution, but one sample may be the partner of several; for more than two
    domains, or unequal shares, the draw is a choice made here.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        p: probability that a batch is mixed.
        alpha: parameter of the Beta distribution, above 0.
        eps: added to the variance.
        mix: as above.

    Raises:
        ValueError: an input with another number of channels; in training, an input with fewer than two positions, or,
            with "cross_domain", a call outside `syncnorm.domain`.
    """

    def __init__(
        self, num_features: int, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, *, mix: Partners = "random"
    ) -> None:
        super().__init__()
        check_eps(self, num_features, eps)
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}: it is a probability.")
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}: a Beta distribution needs one above 0.")
        if mix not in ("random", "cross_domain"):
            raise ValueError(f"mix is {mix!r}: write 'random' or 'cross_domain'.")
        self.num_features, self.p, self.alpha, self.eps, self.mix = num_features, p, alpha, eps, mix

    def normalised(self, x: Tensor) -> Tensor:
        """Mix the styles of `x` of shape (N, C, ...), or return it unchanged."""
        if not self.training:
            return x
        check_positions(self, self.num_features, x)
        apart = self._apart(x) if self.mix == "cross_domain" else None
        if x.numel() == 0 or torch.rand(()) >= self.p:
            return x
        values = x.to(acc_dtype(x.dtype))
        own = Moments.of(values.detach(), tuple(range(2, x.dim())))
        deviation, mean = (own.var(correction=1) + self.eps).sqrt(), own.mean
        share = beta_samples(self.alpha, len(x), 1).to(values)
        if apart is None:
            other = torch.randperm(len(x)).to(x.device)
        elif apart.any():
            other = torch.multinomial(apart.float().cpu(), 1).squeeze(1).to(x.device)
        else:
            return x
        mixed_mean, mixed = torch.lerp(mean[other], mean, share), torch.lerp(deviation[other], deviation, share)
        y = (values - by_sample(mean, x)) * by_sample(mixed / deviation, x) + by_sample(mixed_mean, x)
        return y.to(x.dtype)

    def _apart(self, x: Tensor) -> Tensor:
        """Return which pairs of samples are of different domains, (N, N)."""
        current = current_domain()
        if current is None:
            raise ValueError(no_domain(f"MixStyle({self.num_features}) with mix='cross_domain'") + ".")
        ids = current.of(x)
        return ids.unsqueeze(1) != ids

    def extra_repr(self) -> str:
        """Show the layer's options."""
        return f"{self.num_features}, p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix!r}"


class MixStyleBatchNorm(SynchronisedBatchNorm):
    """Batch norm followed, in training, by `MixStyle`.

    Running statistics are batch norm's, of the input before mixing, and evaluation is batch norm's alone; so
    everything that reads or replaces statistics (recalibrate, prediction-time norms, streams, fold) works as for any
    batch norm. In a converted model all batch norms mix, unless only a part of it is converted. The source puts
    MixStyle after some of the residual blocks: use `MixStyle` between blocks for that.

    Source: Zhou, Yang, Qiao & Xiang (arXiv 2104.02008) for the mixing; placing it after a norm is a choice made here.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine, track_running_stats: as in torch's layers.
        p, alpha, mix: as in `MixStyle`.
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given. Partners stay a rank's own.

    Raises:
        ValueError: an input with another number of channels; in training, an input with fewer than two positions, or,
            with mix="cross_domain", a call outside `syncnorm.domain`.
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
        p: float = 0.5,
        alpha: float = 0.1,
        mix: Partners = "random",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.share(sync, process_group)
        self.mixing = MixStyle(num_features, p, alpha, mix=mix)

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input with one position too, in training."""
        super().check(x)
        if self.training and (problem := positions_problem(self, self.num_features, x)):
            self.refuse(problem, x)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); in training, mix the styles of the output."""
        if not self.training:
            return self.by_running(x)
        mixed: Tensor = self.mixing(self.by_batch(x))
        return mixed
