"""Filter response normalisation, with a learnt threshold instead of a ReLU.

model = syncnorm.convert(model, "frn")      # a ReLU after it stays: remove it, or use tlu=False
"""

import torch
from torch import Tensor, nn

from syncnorm.moments import acc_dtype
from syncnorm.norms.core.affine import ChannelAffine
from syncnorm.norms.core.layer import check_flags
from syncnorm.norms.core.masked import check_counts, mean_square_where
from syncnorm.norms.core.shapes import by_channel, by_sample, check_positions
from syncnorm.norms.core.valid import Valid


class FilterResponseNorm(ChannelAffine):
    """Divide each channel of each sample by its root mean square, then apply a learnt threshold; input (N, C, ...).

        nu2 = mean(x^2) over the positions (H, W) of one sample and channel
        y = x / sqrt(nu2 + eps) * weight + bias,   z = max(y, tau)

    The threshold (TLU) is a nonlinearity: the layer is meant to replace batch norm and the ReLU after it. `convert`
    replaces the norm alone, and a ReLU that follows then turns max(y, tau) into max(y, tau, 0).

    With one value per channel and sample, only its sign would be left: `learn_eps` makes this smooth with

        sqrt(nu2 + eps + |extra_eps|),   extra_eps learnt, 1e-4 at first, shape (C,)

    as in the source, from memory: the initial value and the shape are not confirmed.

    Source: Singh & Krishnan (arXiv 1911.09737).

    Args:
        num_features: C.
        eps: added to nu2 (1e-6 in the source; `convert` keeps the replaced layer's eps unless given).
        affine: learn weight and bias, shape (C,).
        tlu: learn the threshold tau, 0 at first, shape (C,); without it the output is y.
        learn_eps: learn a term added to eps.

    Raises:
        ValueError: one value per channel and sample without `learn_eps`; an input with another number of channels.
    """

    tau: nn.Parameter | None
    extra_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-6,
        affine: bool = True,
        tlu: bool = True,
        learn_eps: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        check_flags(self, num_features, tlu=tlu, learn_eps=learn_eps)
        for name, start, wanted in (("tau", 0.0, tlu), ("extra_eps", 1e-4, learn_eps)):
            values = torch.full((num_features,), start, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(values) if wanted else None)

    def normalised(self, x: Tensor) -> Tensor:
        """Divide each channel of each sample of `x` by its root mean square, and threshold at tau."""
        if self.extra_eps is None:
            check_positions(self, self.num_features, x)
        values = x.to(acc_dtype(x.dtype))
        square = values.square().flatten(2).mean(2) if x.dim() > 2 else values.square()
        return self._bent(values, by_sample(square, x)).to(x.dtype)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Divide each channel of each sample of `x` where `valid` by its root mean square there, and threshold."""
        if self.extra_eps is None:
            check_counts(valid.by_sample, f"FilterResponseNorm({self.num_features})")
        values = valid.fill(x).to(acc_dtype(x.dtype))
        return valid.fill(self._bent(values, mean_square_where(values, valid, by_channel=True)).to(x.dtype))

    def _bent(self, values: Tensor, square: Tensor) -> Tensor:
        """Return `values` divided by sqrt(square + eps), after weight, bias and threshold."""
        eps: float | Tensor = self.eps
        if self.extra_eps is not None:
            eps = by_channel(self.eps + self.extra_eps.to(values.dtype).abs(), values)
        y = self.scale_and_shift(values * torch.rsqrt(square + eps))
        return y if self.tau is None else torch.maximum(y, by_channel(self.tau.to(y.dtype), y))
