"""Predict for an unseen domain with the training domains, weighted by their similarity to each sample.

model = syncnorm.convert(model, "domain_bn", domains=3, domain_affine=True)      # and train within syncnorm.domain
outputs, weights = syncnorm.domain_ensemble(model, x)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.moments import acc_dtype
from syncnorm.norms import DomainBatchNorm, domain
from syncnorm.surgery.layers.modes import evaluation
from syncnorm.surgery.layers.preconditions import call, check_model, uncompiled


def domain_embeddings(model: nn.Module) -> Tensor:
    """Return each domain's embedding, (D, 2 sum C): means and standard deviations of all "domain_bn" layers.

    The squared distance of two embeddings is the sum over layers of the squared 2-Wasserstein distances between two
    Gaussians with independent channels, ||mu_d - mu_e||^2 + ||sigma_d - sigma_e||^2.

    Raises:
        UserError: a model without "domain_bn" layers, or with layers that differ in the number of domains.
    """
    return torch.cat([_embedding(layer) for layer in _domain_layers(model)], 1)


def domain_ensemble(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean of the domains' outputs for `x`, and the weights of the domains.

    The model evaluates `x` once with each domain d. At the input of each "domain_bn" layer, each sample is embedded
    by its own mean mu_i and standard deviation sigma_i (unbiased) over positions:

        D_id = sum over layers ||mu_i - mu_d||^2 + ||sigma_i - sigma_d||^2,   w_id = (1 / D_id) / sum_e (1 / D_ie)
        output_i = sum_d w_id output_d(x_i)

    Layers whose input has one position per sample have no such statistics, and do not affect the weights. No gradient
    goes through the weights. The model's modes do not change.

    Source: BNE (Segu, Tonioni & Tombari, arXiv 2011.12672). The embedding of domains by their statistics and of
    samples by their instance statistics, and the Wasserstein distance, are theirs. Not confirmed: squared distances
    are summed over layers, weights are reciprocals of the sum, a sample is embedded in the branch that it is compared
    with, and outputs are mixed unchanged (logits if the model returns logits).

    Shapes: x (N, ...), output (N, ...) as the model's, weights (N, D).

    Raises:
        UserError: a model without "domain_bn" layers, with layers that differ in the number of domains, or without
            such a layer that has two positions per sample; an empty batch, or one that the model cannot process;
            outputs that are not a tensor (N, ...).
    """
    layers = _domain_layers(model)
    outputs, distances = [], []
    with evaluation(model), uncompiled():
        for d in range(layers[0].domains):
            output, distance = _as_from(model, layers, x, d)
            outputs.append(output)
            distances.append(distance)
    reciprocal = 1.0 / torch.stack(distances, 1).clamp(min=1e-100)
    weights = reciprocal / reciprocal.sum(1, keepdim=True)
    by_domain = torch.stack(outputs, 1)  # (N, D, ...)
    share = weights.to(by_domain.dtype).view(*weights.shape, *[1] * (by_domain.dim() - 2))
    return (share * by_domain).sum(1), weights.to(by_domain.dtype)


def _as_from(model: nn.Module, layers: list[DomainBatchNorm], x: Tensor, d: int) -> tuple[Tensor, Tensor]:
    """Return the output for `x` with domain `d`, and each sample's distance to it, (N,) in float64."""
    terms: list[Tensor] = []

    @torch.no_grad()
    def measure(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, DomainBatchNorm)
        values = inputs[0].to(acc_dtype(inputs[0].dtype))
        if values[0:1, 0:1].numel() > 1:
            var, mean = torch.var_mean(values, tuple(range(2, values.dim())))
            own = torch.cat([mean, var.sqrt()], 1)
            terms.append((own.double() - _embedding(layer)[d].double()).square().sum(1))

    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        with domain(d):
            output = call(model, x, what="the batch")
    finally:
        for hook in hooks:
            hook.remove()
    if len(x) == 0:
        raise UserError("the batch has no sample, so there is nothing to weigh domains by: give at least one.")
    if not isinstance(output, Tensor) or output.shape[:1] != x.shape[:1]:
        what = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UserError(f"the ensemble mixes outputs (N, ...), and the model returns {what}: let it return those.")
    if not terms:
        raise UserError("no sample has two positions at a 'domain_bn' layer, so none resembles any domain.")
    return output, torch.stack(terms).sum(0)


def _embedding(layer: DomainBatchNorm) -> Tensor:
    """Return the layer's part of the domains' embeddings, (D, 2 C)."""
    return torch.cat([layer.domain_mean, layer.domain_var.sqrt()], 1)


def _domain_layers(model: nn.Module) -> list[DomainBatchNorm]:
    check_model(model)
    layers = [module for module in model.modules() if isinstance(module, DomainBatchNorm)]
    counts = sorted({layer.domains for layer in layers})
    if len(counts) != 1:
        has = f"layers of {' and '.join(map(str, counts))} domains" if counts else "no layer that tells domains apart"
        raise UserError(f"the model has {has}: convert it to 'domain_bn' with as many domains everywhere.")
    return layers
