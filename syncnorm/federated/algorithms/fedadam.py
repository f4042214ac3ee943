"""FedAdam (Reddi et al., arXiv 2003.00295, algorithm 2): Adam at the server."""

from collections.abc import Mapping
from typing import ClassVar

import torch

from syncnorm.federated.algorithms.base import Algorithm, Memory, ServerRound, as_real
from syncnorm.federated.messages import Tensors
from syncnorm.federated.options import ABOVE_0, BELOW_1, Option


class FedAdam(Algorithm):
    """With the clients' mean change d of a shared parameter w,

        m = beta1 m + (1 - beta1) d,   v = beta2 v + (1 - beta2) d^2,   w += lr m / (sqrt(v) + tau).

    m and v are zero at first, without bias correction, as in the paper.
    """

    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "lr": Option(0.1, ABOVE_0),
        "beta1": Option(0.9, BELOW_1),
        "beta2": Option(0.99, BELOW_1),
        "tau": Option(1e-3, ABOVE_0),
    }

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return m and v."""
        return {
            moment: {name: torch.zeros_like(as_real(value)) for name, value in parameters.items()}
            for moment in ("m", "v")
        }

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Update the shared parameters; buffers are those of the average."""
        lr, beta1, beta2, tau = (self.options[name] for name in ("lr", "beta1", "beta2", "tau"))
        moved, m, v = {}, {}, {}
        for name in round_.shared:
            change = as_real(round_.average[name] - round_.state[name])
            m[name] = beta1 * memory["m"][name] + (1 - beta1) * change
            v[name] = beta2 * memory["v"][name] + (1 - beta2) * change.square()
            step = lr * (m[name] / (v[name].sqrt() + tau))
            moved[name] = round_.state[name] + (
                torch.view_as_complex(step) if round_.state[name].is_complex() else step
            )
        return moved, {"m": m, "v": v}
