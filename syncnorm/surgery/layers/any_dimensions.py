"""Batch norm in place of a layer that does not say how many dimensions its input has."""

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.norms.core.layer import as_leaf
from syncnorm.surgery.layers.fused import become

_BY_DIMENSIONS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


class BatchNorm(_BatchNorm):
    """torch's batch norm, which becomes `nn.BatchNorm1d`, `2d` or `3d` at its first input.

    `nn.SyncBatchNorm` takes inputs of any dimensions, so its place alone does not tell which of these it was.

    Raises:
        ValueError: an input that is not (N, C) with up to three more dimensions.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `input`; a trace of torch.fx records one call, as it does of torch's own layers."""
        if isinstance(input, Proxy):
            return as_leaf(self, input)
        return super().forward(input)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in _BY_DIMENSIONS:
            raise ValueError(
                f"BatchNorm({self.num_features}) got an input of shape {tuple(input.shape)}: it needs (N, C) and up "
                "to three more dimensions."
            )
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if not traced:  # a graph cannot change a class
            become(self, _BY_DIMENSIONS[input.dim()])
