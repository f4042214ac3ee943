"""Batch norm with separate statistics for each domain; each sample has a domain id.

model = syncnorm.convert(model, "domain_bn", domains=3)
with syncnorm.domain(ids):
    logits = model(x)
model = syncnorm.revert(model, domain=1)        # one domain's statistics; without `domain`, all pooled
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syncnorm.moments import Moments, acc_dtype
from syncnorm.norms.core.affine import normalise
from syncnorm.norms.core.domain_context import current_domain, no_domain
from syncnorm.norms.core.layer import check_eps, check_flags
from syncnorm.norms.core.ranks.groups import Group
from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.running import newest_weight, update_running
from syncnorm.norms.core.shapes import check_divisor
from syncnorm.norms.core.synchronised import Synchronised
from syncnorm.norms.core.valid import Valid


class DomainBatchNorm(Synchronised):
    """Batch norm in which samples share statistics only within their domain.

    For a sample of domain d, with statistics of the batch's samples of d in training and the running statistics of d
    in evaluation,

        y = (x - mean_d) / sqrt(var_d + eps) * weight + bias

    Domains come from `syncnorm.domain(ids)`, and a batch may mix them. Each domain's running statistics are
    updated as in PyTorch's layer: `momentum` is the weight of the new ones, and the variance is unbiased. A domain
    without a sample in the batch keeps its statistics; set `track_running_stats` to False, and all keep theirs.

    Under DDP the batch is that of all ranks in `process_group`: a domain's statistics are the exact moments of its
    samples wherever they are, on some ranks or on one, and all ranks keep the same ones. There is one collective in
    the forward, for all domains together, and one in the backward, and none in evaluation. Gradients are those of the
    sum over ranks of each rank's loss, and those of parameters this rank's part, as in `SyncBatchNorm`. With
    sync=False each rank uses and keeps the statistics of its own samples, as in PyTorch's layer.

    This is not a subclass of PyTorch's `_BatchNorm`, since it has no single running_mean. `recalibrate`, `fold` and
    federated policies read running_mean, so they leave this layer alone.

    Shapes: domain_mean and domain_var (D, C), domain_count (D,) values seen in training, domain_batches (D,).

    Sources: DSBN (Chang et al., arXiv 1906.03950), with domain_affine=True and one domain per batch.

    Args:
        num_features: C of an input of shape (N, C), (N, C, L), (N, C, H, W) or (N, C, D, H, W).
        domains: D; ids are 0 to D - 1.
        eps: added to the variance.
        momentum: weight of the newest statistics in the running ones; None averages all batches equally.
        affine: learn weight and bias.
        domain_affine: learn them for each domain, domain_weight and domain_bias (D, C), instead of (C,) for all.
        fallback: what evaluation does outside `syncnorm.domain`: "error" raises, "pooled" normalises with `pooled()`
            and the mean of the domains' weights and biases.
        sync: whether ranks share statistics, domain by domain.
        process_group: those ranks; None is all of them. A DeviceMesh of one dimension means its ranks.

    Raises:
        ValueError: an unknown domain; no domain (in training, or with fallback="error"); one value per channel for a
            domain in training, on all ranks together.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    domain_weight: nn.Parameter | None
    domain_bias: nn.Parameter | None
    domain_mean: Tensor
    domain_var: Tensor
    domain_count: Tensor
    domain_batches: Tensor

    def __init__(
        self,
        num_features: int,
        domains: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        *,
        domain_affine: bool = False,
        fallback: Literal["error", "pooled"] = "error",
        sync: bool = True,
        process_group: Group = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_eps(self, num_features, eps)
        check_flags(self, num_features, affine=affine, domain_affine=domain_affine, sync=sync)
        if domains < 1:
            raise ValueError(f"domains is {domains}: it must be at least 1.")
        if fallback not in ("error", "pooled"):
            raise ValueError(f"fallback is {fallback!r}: write 'error' or 'pooled'.")
        self.num_features, self.domains, self.eps, self.momentum = num_features, domains, eps, momentum
        self.affine, self.domain_affine, self.fallback = affine, domain_affine, fallback
        self.share(sync, process_group)
        self.track_running_stats = True
        by_domain = (domains, num_features)
        shared, own = affine and not domain_affine, affine and domain_affine
        for name, shape, wanted in (
            ("weight", by_domain[1:], shared),
            ("bias", by_domain[1:], shared),
            ("domain_weight", by_domain, own),
            ("domain_bias", by_domain, own),
        ):
            start = torch.ones if name.endswith("weight") else torch.zeros
            value = nn.Parameter(start(shape, device=device, dtype=dtype)) if wanted else None
            self.register_parameter(name, value)
        self.register_buffer("domain_mean", torch.zeros(by_domain, device=device, dtype=dtype))
        self.register_buffer("domain_var", torch.ones(by_domain, device=device, dtype=dtype))
        for name in ("domain_count", "domain_batches"):
            self.register_buffer(name, torch.zeros(domains, device=device, dtype=torch.int64))

    def shape_shared(self) -> tuple[int, ...]:
        """Return the shape of the means that the layer shares."""
        return self.domains, self.num_features

    def normalised(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape (N, C, ...), each sample with its domain's statistics."""
        return self._normalised(x, None)

    def masked(self, x: Tensor, valid: Valid) -> Tensor:
        """Normalise `x` where `valid`, each sample with its domain's statistics there."""
        return valid.fill(self._normalised(valid.fill(x), valid))

    def _normalised(self, x: Tensor, valid: Valid | None) -> Tensor:
        ids = self._ids(x)
        if ids is None:
            pooled = self.pooled()
            mean, var = pooled.mean.expand(len(x), -1), pooled.var().expand(len(x), -1)
        elif self.training:
            batch = moments_by_domain(x, ids, self.domains, None if valid is None else valid.where)
            if self.meets():
                batch = self.over_ranks(batch, x)
            self._check_counts(x, batch.count, valid)
            share = batch.count.clamp(min=1).unsqueeze(1).to(batch.m2.dtype)
            mean, var = batch.mean[ids], (batch.m2 / share)[ids]
            check_divisor(self, self.num_features, var)
            if self.track_running_stats and not recomputing():
                self._update_running(batch)
        else:
            mean, var = self.domain_mean[ids], self.domain_var[ids]
        return self._standardise(x, mean, var, ids)

    def pooled(self) -> Moments:
        """Return the moments of all domains together, weighted by the number of values seen of each in training.

        Before any value has been seen, every domain counts as one. `var()` of the result is the mean of the domains'
        running variances plus the variance of their means.
        """
        count = torch.where(self.domain_count.sum() > 0, self.domain_count, 1).double()
        mean = self.domain_mean.to(acc_dtype(self.domain_mean.dtype))
        return Moments(count, mean, self.domain_var.to(mean.dtype) * count.unsqueeze(1).to(mean.dtype)).pooled()

    @torch.no_grad()
    def start_from(self, norm: Any) -> None:
        """Let every domain start with the statistics of the batch norm `norm`, and its weights if it has its own."""
        for own, theirs in (
            (self.domain_mean, norm.running_mean),
            (self.domain_var, norm.running_var),
            (self.domain_weight, norm.weight),
            (self.domain_bias, norm.bias),
        ):
            if own is not None and theirs is not None:
                own.copy_(theirs.expand_as(own))

    @torch.no_grad()
    def hand_to(self, norm: Any, domain: int | None = None) -> None:
        """Copy the statistics of `domain`, and its weights if each domain has its own, to the batch norm `norm`.

        None means all domains: `pooled()`, unless nothing was seen, and the mean of the domains' weights.
        """
        if domain is not None and not 0 <= domain < self.domains:
            raise ValueError(self._unknown(domain))
        pairs: list[tuple[Tensor | None, Tensor]] = []
        if domain is not None:
            pairs += [(norm.running_mean, self.domain_mean[domain]), (norm.running_var, self.domain_var[domain])]
        elif self.domain_count.sum() > 0:
            pairs += [(norm.running_mean, self.pooled().mean), (norm.running_var, self.pooled().var())]
        for theirs, own in ((norm.weight, self.domain_weight), (norm.bias, self.domain_bias)):
            if own is not None:
                pairs.append((theirs, own.mean(0) if domain is None else own[domain]))
        for theirs, value in pairs:
            if theirs is not None:
                theirs.copy_(value)

    def extra_repr(self) -> str:
        """Show the layer's options."""
        return (
            f"{self.num_features}, domains={self.domains}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, domain_affine={self.domain_affine}, fallback={self.fallback!r}, sync={self.sync}"
        )

    def _standardise(self, x: Tensor, mean: Tensor, var: Tensor, ids: Tensor | None) -> Tensor:
        """Return x normalised by each sample's mean and variance, (N, C), with its domain's weight and bias."""
        statistics = acc_dtype(x.dtype)
        weight, bias = (
            shared if own is None else own.mean(0) if ids is None else own[ids]
            for shared, own in ((self.weight, self.domain_weight), (self.bias, self.domain_bias))
        )
        return normalise(x, mean.to(statistics), var.to(statistics), self.eps, weight, bias)

    def _ids(self, x: Tensor) -> Tensor | None:
        """Return the domain of each sample, (N,); None if evaluation uses the pooled statistics."""
        current = current_domain()
        if current is not None:
            if current.largest >= self.domains:
                self.refuse(self._unknown(current.largest), x)
            try:
                return current.of(x)
            except ValueError as problem:
                self.refuse(str(problem), x)
        if not self.training and self.fallback == "pooled":
            return None
        instead = "." if self.training else ", or build the layer with fallback='pooled'."
        self.refuse(no_domain(f"DomainBatchNorm({self.num_features})") + instead, x)

    def _unknown(self, domain: int) -> str:
        return (
            f"domain {domain} is unknown: DomainBatchNorm({self.num_features}) has {self.domains} domains, and knows "
            f"the ids {', '.join(map(str, range(self.domains)))}."
        )

    def _check_counts(self, x: Tensor, counts: Tensor, valid: Valid | None) -> None:
        # Only if a sample has one value per channel: reading the counts synchronises with the device.
        # The value may be another rank's: where masks differ between ranks, all of them look.
        masked = valid is not None and (self.meets() or 1 in valid.by_sample)
        one = x.numel() == len(x) * self.num_features if valid is None else masked
        if one and (counts == 1).any():
            alone = int((counts == 1).int().argmax())
            where = ", on all ranks together" if self.meets() else ""
            raise ValueError(
                f"DomainBatchNorm({self.num_features}) got one value per channel of domain {alone}{where} (input "
                f"{tuple(x.shape)}): a variance needs two. Give it more samples, or call .eval()."
            )

    @torch.no_grad()
    def _update_running(self, batch: Moments) -> None:
        """Update the running statistics of the domains in the batch."""
        seen = batch.count > 0
        self.domain_batches.add_(seen)
        self.domain_count.add_(batch.count.long())
        newest = newest_weight(self.momentum, self.domain_batches.clamp(min=1).unsqueeze(1))
        unbiased = batch.m2 / (batch.count - 1).clamp(min=1).unsqueeze(1).to(batch.m2.dtype)
        for running, new in ((self.domain_mean, batch.mean), (self.domain_var, unbiased)):
            update_running(running, new, newest, where=seen.unsqueeze(1))


def moments_by_domain(x: Tensor, ids: Tensor, domains: int, where: Tensor | None = None) -> Moments:
    """Return the moments of x (N, C, ...) for each domain, stacked: count (D,), mean (D, C), m2 (D, C).

    With `where`, bool (N, 1, ...), only values where it is true count; the others have to be zero.

    `ids` (N,) are from 0 to D - 1. Sums over samples are matrix products in float64, so that PyTorch's settings for
    the precision of products do not affect them, and the mean needs no second pass.
    """
    x = x.to(acc_dtype(x.dtype))
    x = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
    member = F.one_hot(ids, domains).T.double()
    count = member.sum(1) * x.shape[2] if where is None else member @ where.flatten(1).sum(1).double()
    mean = (member @ x.sum(2).double() / count.clamp(min=1).unsqueeze(1)).to(x.dtype)
    deviation = x - mean[ids].unsqueeze(2)
    if where is not None:
        deviation = torch.where(where.flatten(1).unsqueeze(1), deviation, 0.0)
    m2 = member @ deviation.square().sum(2).double()
    return Moments(count, mean, m2.to(x.dtype))
