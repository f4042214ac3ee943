"""Virtual ranks for any norm that goes by the batch of one device: a copy of the model for each, in one process."""

import copy

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError


class VirtualRanks(nn.Module):
    """R copies of a model with the same parameters, each with buffers and a memory of its own.

    In training, rank r's copy sees samples r, r + R, r + 2R, ..., as `data.rank_batches` deals them. What the mean
    loss of the whole batch gives as gradient is then the mean of the ranks' gradients, which is DDP on R devices
    without `broadcast_buffers`. (A norm that keeps gradients keeps 1 / R of what a device would.) Evaluation is that
    of rank 0's copy, which DDP would save.

    It is the whole model that is copied and not its norms alone, since a norm may look beyond its own input:
    cross-iteration batch norm follows the weight of the convolution before it. `GhostBatchNorm` does the same for
    batch norm, in one kernel.

    Args:
        model: becomes rank 0's copy, as it is; takes (N, ...) and returns (N, ...).
        ranks: R.

    Raises:
        UserError: a model that `copy.deepcopy` cannot copy; in training, a batch of N samples, no multiple of R.
    """

    def __init__(self, model: nn.Module, ranks: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList([model, *(copy_sharing_parameters(model) for _ in range(ranks - 1))])

    def forward(self, x: Tensor) -> Tensor:
        """Return what each sample's rank makes of it, in the order of `x`."""
        if not self.training:
            y: Tensor = self.copies[0](x)
            return y
        ranks = len(self.copies)
        if len(x) % ranks:
            raise UserError(
                f"{len(x)} samples do not divide over {ranks} virtual ranks: give each rank as many, for example by "
                "dropping the last incomplete batch."
            )
        by_rank = [model(x[rank::ranks]) for rank, model in enumerate(self.copies)]
        return torch.stack(by_rank, dim=1).flatten(0, 1)


def copy_sharing_parameters(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with the very same parameters, and all else of its own."""
    try:
        return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    except Exception as error:  # whatever a module of the user's own holds
        kind = type(model).__name__
        raise UserError(
            f"virtual ranks need a copy of the model each, and {kind} cannot be copied ({error}): write "
            "engine='torchrun', or train on one rank."
        ) from error
