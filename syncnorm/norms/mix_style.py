"""Mix the styles of a batch's samples while training, so that a network relies less on any one domain's.

model = syncnorm.convert(model, "mixstyle", p=0.5)                      # behind every batch norm, which stays
model.layer1 = syncnorm.convert(model.layer1, "mixstyle")               # behind those of a part alone
nn.Sequential(block1, syncnorm.norms.MixStyle(64), block2)              # between blocks, as in the source
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.domain_context import current_domain, no_domain
from syncnorm.norms.core.shapes import by_sample, check_channels, check_positions
from syncnorm.norms.core.trains_as_batch_norm import TrainsAsBatchNorm

Partners = Literal["random", "cross_domain"]


class MixStyle(nn.Module):
    """MixStyle: give each sample, in training, channel means and deviations between its own and another sample's.

    For sample i and its partner j, with lambda_i ~ Beta(alpha, alpha),

        sigma' = lambda sigma_i + (1 - lambda) sigma_j,   mu' = lambda mu_i + (1 - lambda) mu_j
        y_i = (x_i - mu_i) / sigma_i * sigma' + mu'

    where mu and sigma = sqrt(var + eps) (unbiased) are those of a sample's channel over its positions, without a
    gradient. A batch is mixed with probability p. Evaluation is the identity. This is no normalisation and learns
    nothing: it goes between blocks, beside a model's norms and not in place of them (`MixStyleBatchNorm` is a norm
    with it). Random numbers are torch's, of the CPU. Partners are, by `mix`,

        "random"        those of a random permutation of the batch;
        "cross_domain"  drawn for each sample from the batch's samples of other domains, all alike and independently;
                        `syncnorm.domain(ids)` tells the domains. A batch of one domain stays as it is.

    Source: Zhou, Yang, Qiao & Xiang (arXiv 2104.02008): formula and random shuffle. Their code's shuffle across
    domains takes a batch of two domains, half and half, and gives each half a permutation of the other. Each
    sample's partner is as likely here, but one sample may be the partner of several; for batches of more domains, or
    uneven ones, the draw is a choice made here.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        p: probability that a batch is mixed.
        alpha: of the Beta distribution, above 0.
        eps: added to the variance.
        mix: as above.

    Raises:
        ValueError: an input of another number of channels; in training, one with fewer than two positions, and with
            "cross_domain" one outside of `syncnorm.domain`.
    """

    def __init__(
        self, num_features: int, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, *, mix: Partners = "random"
    ) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}: it is a probability.")
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}: a Beta distribution needs one above 0.")
        if mix not in ("random", "cross_domain"):
            raise ValueError(f"mix is {mix!r}: write 'random' or 'cross_domain'.")
        self.num_features, self.p, self.alpha, self.eps, self.mix = num_features, p, alpha, eps, mix

    def forward(self, x: Tensor) -> Tensor:
        """Mix the styles of `x` of shape (N, C, ...), or return it as it is."""
        check_channels(self, self.num_features, x)
        if not self.training:
            return x
        check_positions(self, self.num_features, x)
        apart = self._apart(x) if self.mix == "cross_domain" else None
        if x.numel() == 0 or torch.rand(()) >= self.p:
            return x
        values = x.to(acc_dtype(x.dtype))
        own = Moments.of(values.detach(), tuple(range(2, x.dim())))
        deviation, mean = (own.var(correction=1) + self.eps).sqrt(), own.mean
        drawn = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x), 1))
        share = drawn.to(values)
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
        """Return which samples are of different domains, (N, N)."""
        current = current_domain()
        if current is None:
            raise ValueError(no_domain(f"MixStyle({self.num_features}) with mix='cross_domain'") + ".")
        ids = current.of(x)
        return ids.unsqueeze(1) != ids

    def extra_repr(self) -> str:
        """Show what the layer was made with."""
        return f"{self.num_features}, p={self.p}, alpha={self.alpha}, eps={self.eps}, mix={self.mix!r}"


class MixStyleBatchNorm(TrainsAsBatchNorm):
    """Batch norm, and behind it, in training, `MixStyle`: the norm is kept, and styles are mixed after it.

    Running statistics are batch norm's, of what comes before the mixing, and evaluation is batch norm's alone; so
    what reads or replaces statistics (recalibrate, prediction-time norms, streams, fold) finds them as in any batch
    norm. In a converted model all batch norms mix, unless a part of it alone is converted; the source has MixStyle
    behind some of the residual blocks, which is `MixStyle` between them.

    Source: Zhou, Yang, Qiao & Xiang (arXiv 2104.02008) for the mixing; its place behind a norm is a choice made here.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps, momentum, affine, track_running_stats: as in torch's layers.
        p, alpha, mix: as in `MixStyle`.

    Raises:
        ValueError: an input of another number of channels; in training, one with fewer than two positions, and with
            mix="cross_domain" one outside of `syncnorm.domain`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        p: float = 0.5,
        alpha: float = 0.1,
        mix: Partners = "random",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.mixing = MixStyle(num_features, p, alpha, mix=mix)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...); in training, mix the styles of what comes out."""
        check_channels(self, self.num_features, x)
        if not self.training:
            return self.by_running(x)
        check_positions(self, self.num_features, x)
        mixed: Tensor = self.mixing(self.train_on(x))
        return mixed
