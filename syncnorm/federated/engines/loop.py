"""The plain engine: one client after another, one model, PyTorch's own optimisers. Slow, exact, easy to debug."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, chain

import torch
from torch import Tensor, nn

from syncnorm.errors import UserError
from syncnorm.federated.engines.feed import Feed
from syncnorm.federated.engines.memory import Memory
from syncnorm.federated.local import Local, Task, Update
from syncnorm.surgery import adaptive_gradient_clip, batch_norms
from syncnorm.training.learner import make_optimizer
from syncnorm.training.precision import PRECISIONS


def train(local: Local, x: Tensor, y: Tensor, tasks: Sequence[Task]) -> list[Update]:
    """Train every task's client on its part of the pool `x` (N, C, H, W), `y` (N,); return updates in task order.

    A client that raises gives an update with an error, and the others continue.

    Raises:
        UserError: an algorithm whose clients share statistics inside a step; that needs all clients at once.
    """
    if local.algorithm.shares_statistics:
        raise UserError(
            "the clients of this method exchange statistics inside a step: choose the engine cohort, which trains "
            "them at once."
        )
    feed = Feed(local, x, y, [[(task, step)] for task in tasks for step in range(len(task.batches))])
    firsts = accumulate((len(task.batches) for task in tasks), initial=0)
    memory = Memory(local.classifier.model)
    return [_attempt(local, feed, first, task, memory) for first, task in zip(firsts, tasks, strict=False)]


def _attempt(local: Local, feed: Feed, first: int, task: Task, memory: Memory) -> Update:
    """Train a client, whose steps begin with job `first` of the feed."""
    try:
        with torch.random.fork_rng(devices=[]):
            return _train(local, feed, first, task)
    except Exception as error:  # from the user's model or data: only this client fails
        return Update(task.client, {}, error=f"{type(error).__name__}: {error}")
    finally:
        memory.restore()


def _train(local: Local, feed: Feed, first: int, task: Task) -> Update:
    torch.manual_seed(task.seed)
    model = local.classifier.model
    _load(model, task.state)
    optimizer = make_optimizer(local.classifier.named_parameters(), local.optim)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _resume(optimizer, parameters, task.momentum)
    shared = {name: parameters[name] for name in local.shared}
    received = {name: task.state[name] for name in local.shared}
    losses, scale = [], PRECISIONS[local.classifier.precision].loss_scale
    for step, index in enumerate(task.batches):
        set_mode(model, task.running[step])
        x, y = feed.take(first + step)
        loss = local.classifier.training_step((x[:, 0], y[0]), step)
        losses.append(loss.detach() * len(index))
        objective = loss
        if local.has_term:
            objective = loss + local.algorithm.local_term(shared, received, task.inputs)
        optimizer.zero_grad()
        (objective * scale).backward()  # type: ignore[no-untyped-call]
        if scale != 1:
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.div_(scale)
        if local.clip:
            _clip(parameters, local.clip)
        optimizer.step()
    local.classifier.forget_losses()
    seen = sum(len(index) for index in task.batches)
    state = {name: value.detach().clone() for name, value in chain(model.named_parameters(), model.named_buffers())}
    momentum = None if task.momentum is None else _momentum(optimizer, parameters)
    return Update(task.client, state, torch.stack(losses).sum().item() / seen, momentum)


@torch.no_grad()
def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        value.copy_(state[name])


def set_mode(model: nn.Module, running: bool) -> None:
    """Set training mode; with `running`, batch norms alone are in evaluation mode."""
    model.train()
    if running:
        for layer in batch_norms(model).values():
            layer.eval()


def _clip(parameters: Mapping[str, nn.Parameter], clip: float) -> None:
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    for name, gradient in adaptive_gradient_clip(parameters, gradients, clip).items():
        parameters[name].grad = gradient


def _resume(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], momentum: Mapping[str, Tensor] | None
) -> None:
    for name, buffer in (momentum or {}).items():
        optimizer.state[parameters[name]]["momentum_buffer"] = buffer.to(parameters[name], copy=True)


def _momentum(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    buffers = {name: optimizer.state[p].get("momentum_buffer") for name, p in parameters.items()}
    return {name: buffer for name, buffer in buffers.items() if buffer is not None}
