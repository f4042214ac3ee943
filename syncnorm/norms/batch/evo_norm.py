"""EvoNorm: norm and nonlinearity in one formula, found by search; per sample (S0) or with batch statistics (B0).

model = syncnorm.convert(model, "evonorm_s0", groups=8)     # a ReLU that follows stays in the model
"""

from math import prod

import torch
from torch import Tensor, nn

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import ChannelAffine
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import by_channel, by_sample, check_divisor, check_positions, positions_problem
from syncnorm.norms.core.synchronised import Synchronised
from syncnorm.norms.sample.per_sample import default_groups


class EvoNormS0(ChannelAffine):
    """EvoNorm-S0, which needs no batch; input (N, C, ...).

        y = x * sigmoid(v x) / sqrt(var_g + eps) * weight + bias

    with the biased variance of each group of channels of one sample, var_g over (C / G, H, W), and v learnt per
    channel, 1 at first. The formula includes the nonlinearity: the layer is meant to replace a norm and the ReLU
    after it, while `convert` replaces the norm alone.

    The default of `groups` is that of `GroupNorm`: the largest divisor of C that is at most 32 and leaves two
    channels per group. At an input of one position, (N, C) or (N, C, 1, 1), it is the largest that leaves 16 channels
    per group, or 1, since two values a group do not train. Test accuracy on digits, in percent, of two linear layers
    of 64 channels, each followed by this norm, with 2, 4, 8, 16 and 64 channels a group: 24.8, 94.7, 96.7, 96.9, 96.9
    (mean of three seeds at the best of the rates 0.01, 0.03, 0.1 and 0.3; 10 epochs of SGD with momentum 0.9).

    Source: Liu, Brock, Simonyan & Le (arXiv 2004.02967).

    Raises:
        ValueError: groups that do not divide C; one value per group and sample; an input with another number of
            channels.
    """

    def __init__(
        self,
        num_features: int,
        groups: int | None = None,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.groups = default_groups(num_features) if groups is None else groups
        if self.groups < 1 or num_features % self.groups:
            raise ValueError(f"{num_features} channels do not divide into {groups} groups: choose a divisor.")
        self.by_default = groups is None
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))

    def groups_of(self, x: Tensor) -> int:
        """Return the number of groups at an input `x`: `groups`, or fewer by default at one position."""
        if not self.by_default or prod(x.shape[2:]) != 1:
            return self.groups
        return max(g for g in range(1, 33) if self.num_features % g == 0 and (g == 1 or 16 * g <= self.num_features))

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise each sample of `x` and apply the nonlinearity."""
        groups = self.groups_of(x)
        if groups == self.num_features:
            check_positions(self, self.num_features, x)
        values = x.to(acc_dtype(x.dtype))
        grouped = values.reshape(x.shape[0], groups, self.num_features // groups, *x.shape[2:])
        var = Moments.of(grouped, tuple(range(2, grouped.dim()))).var()
        gated = grouped * by_sample(torch.rsqrt(var + self.eps), grouped)
        y = gated.reshape(x.shape) * torch.sigmoid(by_channel(self.v.to(values.dtype), x) * values)
        return self.scale_and_shift(y).to(x.dtype)


class EvoNormB0(Synchronised, ChannelAffine):
    """EvoNorm-B0, which divides by the larger of a batch term and a sample term; input (N, C, ...).

        y = x / max(sqrt(var_b + eps), v x + sqrt(var_i + eps)) * weight + bias

    with the biased variances of a channel over the batch, var_b over (N, H, W), and over one sample, var_i over
    (H, W); v is learnt per channel, 1 at first. Evaluation uses the running variance as var_b. It is updated with
    `momentum`, from the unbiased variance, as in PyTorch's batch norm (timm does so; the source is not confirmed).
    The formula includes the nonlinearity: the layer is meant to replace batch norm and the ReLU after it, while
    `convert` replaces the norm alone. Set `track_running_stats` to False to keep the running variance as it is.
    There is no running mean, so this is not a subclass of PyTorch's batch norm.

    Source: Liu, Brock, Simonyan & Le (arXiv 2004.02967).

    Args:
        num_features: C of an input of shape (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        eps: added to the variances.
        momentum: weight of the newest variance in the running one; None averages all batches equally.
        affine: learn weight and bias, shape (C,).
        sync: take the batch to be that of all ranks of torch.distributed (`process_group`: of these ranks); None: if
            a `process_group` is given.

    Raises:
        ValueError: one value per channel and sample, which makes var_i zero; an input with another number of
            channels.
    """

    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        sync: bool | None = None,
        process_group: Group = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine, device=device, dtype=dtype)
        self.share(sync, process_group)
        self.momentum, self.track_running_stats = momentum, True
        self.v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` for an input with one position too."""
        super().check(x)
        if problem := positions_problem(self, self.num_features, x):
            self.refuse(problem, x)

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` and apply the nonlinearity."""
        values = x.to(acc_dtype(x.dtype))
        if self.training or self.running_var is None:
            batch = self.moments(values)
            var = batch.var()
            check_divisor(self, self.num_features, var)
            if self.training and self.track_running_stats and not recomputing():
                self._update_running(batch)
        else:
            var = self.running_var.to(values.dtype)
        own = Moments.of(values, tuple(range(2, x.dim()))).var()
        bent = by_channel(self.v.to(values.dtype), x) * values + by_sample((own + self.eps).sqrt(), x)
        y = values / torch.maximum(by_channel((var + self.eps).sqrt(), x), bent)
        return self.scale_and_shift(y).to(x.dtype)

    @torch.no_grad()
    def _update_running(self, batch: Moments) -> None:
        newest: float | Tensor = self.momentum or 0.0  # without a counter, the mean of all batches stands still
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            newest = newest_weight(self.momentum, self.num_batches_tracked)
        if self.running_var is not None:
            update_running(self.running_var, batch.var(correction=1), newest)
