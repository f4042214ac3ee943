"""FedAvgM (Hsu, Qi & Brown, arXiv 1909.06335): momentum at the server."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from syncnorm.federated.algorithms.base import Algorithm, Memory, ServerRound
from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import ABOVE_0, BELOW_1, Option


class FedAvgM(Algorithm):
    """With the clients' mean change d of a shared parameter w: v = momentum v + d, w += lr v; v is zero at first."""

    OPTIONS: ClassVar[Mapping[str, Option]] = {"lr": Option(1.0, ABOVE_0), "momentum": Option(0.9, BELOW_1)}

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return v."""
        return {"velocity": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Update the shared parameters; buffers are those of the average."""
        moved, velocity = {}, {}
        for name in round_.shared:
            change = round_.average[name] - round_.state[name]
            velocity[name] = self.options["momentum"] * memory["velocity"][name] + change
            moved[name] = round_.state[name] + self.options["lr"] * velocity[name]
        return moved, {"velocity": velocity}
