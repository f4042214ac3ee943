"""SCAFFOLD (Karimireddy et al., arXiv 1910.06378), with option II for the clients' controls."""

import torch
from torch import Tensor

from syncnorm.config import Clients, Run
from syncnorm.errors import UserError
from syncnorm.federated.algorithms.base import Algorithm, Memory, ServerRound, Trained, as_real
from syncnorm.federated.messages import Tensors


class Scaffold(Algorithm):
    """Correct each local gradient by the server's control c minus the client's c_k.

    A local step is w -= lr (g + c - c_k). After K steps c_k+ = c_k - c + (w_received - w) / (K lr), the client sends
    c_k+ - c_k. The server adds the sum of these, divided by the number of all clients, to c, so that c stays the mean
    of all c_k. All controls are zero at first.
    """

    def check(self, run: Run) -> None:
        """Refuse an optimiser that does not follow the path of plain SGD."""
        assert isinstance(run.world, Clients)
        if run.optim.name != "sgd" or run.optim.momentum != 0:
            raise UserError(
                "scaffold derives its controls from the path of plain SGD: set optim.name to sgd and optim.momentum "
                "to 0."
            )
        if run.world.clip:
            raise UserError("scaffold derives its controls from the path of plain SGD: set clip to 0.")

    def client_inputs(self, message: Tensors, kept: Tensors) -> Tensors:
        """Return c - c_k."""
        return {name: c - kept[name] if name in kept else c for name, c in message.items()}

    def local_term(self, parameters: Tensors, received: Tensors, inputs: Tensors) -> Tensor:
        """Return <c - c_k, w>, whose gradient is the correction."""
        products = [(as_real(value) * as_real(parameters[name])).sum() for name, value in sorted(inputs.items())]
        return torch.stack(products).sum()

    def client_result(self, trained: Trained) -> tuple[Tensors, Tensors]:
        """Return c_k+ - c_k to send, and c_k+ to keep."""
        path = trained.steps * trained.lr
        changes, own = {}, {}
        for name, c in trained.message.items():
            changes[name] = (trained.before[name] - trained.after[name]) / path - c
            own[name] = (c - trained.inputs[name]) + changes[name]
        return changes, own

    def server_memory(self, parameters: Tensors) -> Memory:
        """Return c, zero at first."""
        return {"control": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def message(self, memory: Memory) -> Tensors:
        """Send c."""
        control: Tensors = memory["control"]
        return control

    def check_result(self, memory: Memory, sent: Tensors) -> None:
        """Refuse a control change that is missing, has another shape, or is not finite."""
        for name, value in memory["control"].items():
            change = sent.get(name)
            fits = change is not None and change.shape == value.shape and change.is_complex() == value.is_complex()
            if change is None or not fits or not change.isfinite().all():
                raise ValueError(f"sent no usable control for '{name}'.")

    def server_step(self, round_: ServerRound, memory: Memory) -> tuple[Tensors, Memory]:
        """Return c + |S|/N mean_k(c_k+ - c_k), with the |S| clients of the round of all N."""
        control = {
            name: value + torch.stack([reply.extra[name] for reply in round_.replies]).sum(0) / round_.clients
            for name, value in memory["control"].items()
        }
        return {}, {"control": control}
