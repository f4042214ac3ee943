"""The base of batch norms that train as PyTorch's and differ in evaluation, or after normalising."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from syncnorm.norms.core.recomputation import recomputing
from syncnorm.norms.core.shapes import check_channels, check_values


class TrainsAsBatchNorm(_BatchNorm):
    """Batch norm that trains as PyTorch's does, and counts a batch once under activation checkpointing."""

    def train_on(self, x: Tensor) -> Tensor:
        """Normalise `x` by its own moments, and update the running statistics."""
        check_values(self, self.num_features, x)
        return self.by_batch_alone(x) if recomputing() else super().forward(x)

    def by_batch_alone(self, x: Tensor) -> Tensor:
        """Normalise `x` by its own moments, without changing the running statistics."""
        # Copies of the statistics, since a recomputation must save as many tensors as the forward did.
        mean, var = (None if t is None else t.clone() for t in (self.running_mean, self.running_var))
        return F.batch_norm(x, mean, var, self.weight, self.bias, True, 0.0, self.eps)

    def by_running(self, x: Tensor) -> Tensor:
        """Normalise `x` by the running statistics, or by its own moments if there are none."""
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, mean is None, 0.0, self.eps)

    def _check_input_dim(self, input: Tensor) -> None:
        check_channels(self, self.num_features, input)
