"""Mix the styles of a batch's samples while training, so that a network relies less on any one domain's.

nn.Sequential(block1, syncnorm.make_norm("mixstyle", 64), block2)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.moments import accumulator
from syncnorm.norms.shapes import check_channels, check_positions


class MixStyle(nn.Module):
    """MixStyle: give each sample, in training, channel means and deviations between its own and another sample's.

    For sample i and a random permutation, j = permutation(i), with lambda_i ~ Beta(alpha, alpha),

        sigma' = lambda sigma_i + (1 - lambda) sigma_j,   mu' = lambda mu_i + (1 - lambda) mu_j
        y_i = (x_i - mu_i) / sigma_i * sigma' + mu'

    where mu and sigma = sqrt(var + eps) (unbiased) are those of a sample's channel over its positions, without a
    gradient. A batch is mixed with probability p. Evaluation is the identity. This is no normalisation and learns
    nothing: it goes between blocks, beside a model's norms and not in place of them. Random numbers are torch's,
    of the CPU.

    Source: Zhou, Yang, Qiao & Xiang (arXiv 2104.02008), its random shuffle.

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        p: probability that a batch is mixed.
        alpha: of the Beta distribution, above 0.
        eps: added to the variance.

    Raises:
        ValueError: an input of another number of channels; in training, one with fewer than two positions.
    """

    def __init__(self, num_features: int, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p is {p}: it is a probability.")
        if not alpha > 0:
            raise ValueError(f"alpha is {alpha}: a Beta distribution needs one above 0.")
        self.num_features, self.p, self.alpha, self.eps = num_features, p, alpha, eps

    def forward(self, x: Tensor) -> Tensor:
        """Mix the styles of `x` of shape (N, C, ...), or return it as it is."""
        check_channels(self, self.num_features, x)
        if self.training:
            check_positions(self, self.num_features, x)
        if not self.training or len(x) == 0 or torch.rand(()) >= self.p:
            return x
        values = x.to(accumulator(x.dtype))
        var, mean = torch.var_mean(values.detach(), tuple(range(2, x.dim())), keepdim=True)
        deviation = (var + self.eps).sqrt()
        drawn = torch.distributions.Beta(self.alpha, self.alpha).sample((len(x),))
        share = drawn.to(values).view(-1, *[1] * (x.dim() - 1))
        other = torch.randperm(len(x)).to(x.device)
        mixed_deviation = torch.lerp(deviation[other], deviation, share)
        mixed_mean = torch.lerp(mean[other], mean, share)
        return ((values - mean) / deviation * mixed_deviation + mixed_mean).to(x.dtype)

    def extra_repr(self) -> str:
        """Show what the layer was made with."""
        return f"{self.num_features}, p={self.p}, alpha={self.alpha}, eps={self.eps}"
