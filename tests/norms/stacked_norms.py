"""Several models in one step, by stacking them, held equal to one model after the other."""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

MODELS, SAMPLES, CLASSES = 3, 5, 3


def stack(models: list[nn.Module], named: Callable[[nn.Module], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return what `named` lists of the models by name, stacked along a leading dimension."""
    by_model = [named(model) for model in models]
    return {name: torch.stack([tensors[name].detach() for tensors in by_model]) for name in by_model[0]}


def assert_stacked_equals_loop(models: list[nn.Module], shape: tuple[int, ...], steps: int = 2) -> None:
    """Take the same training steps with all models stacked and one by one: losses, gradients, buffers at 1e-12."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(steps, len(models), SAMPLES, *shape, dtype=torch.float64, generator=g) * 2 + 1
    y = torch.randint(0, CLASSES, (steps, len(models), SAMPLES), generator=g)
    parameters = {
        name: value.requires_grad_() for name, value in stack(models, lambda m: dict(m.named_parameters())).items()
    }
    buffers = stack(models, lambda m: dict(m.named_buffers()))
    template = copy.deepcopy(models[0])

    def loss_of(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(template, (p, b), (x,)), y)

    close = {"rtol": 1e-12, "atol": 1e-12}
    for step in range(steps):
        losses = vmap(loss_of, randomness="error")(parameters, buffers, x[step], y[step])
        grads = torch.autograd.grad(losses.sum(), list(parameters.values()))
        for k, model in enumerate(models):
            loss = F.cross_entropy(model(x[step, k]), y[step, k])
            torch.testing.assert_close(losses[k], loss, **close)
            expected = torch.autograd.grad(loss, list(model.parameters()))
            for name, found, right in zip(parameters, grads, expected, strict=True):
                torch.testing.assert_close(found[k], right, **close, msg=lambda m, name=name: f"{name}: {m}")
            with torch.no_grad():
                for name, p, grad in zip(parameters, model.parameters(), expected, strict=True):
                    p -= 0.1 * grad
                    parameters[name][k] -= 0.1 * grad
    for k, model in enumerate(models):
        for name, buffer in model.named_buffers():
            torch.testing.assert_close(buffers[name][k], buffer, **close, msg=lambda m, name=name: f"{name}: {m}")


def small_networks(layer: Callable[[int], nn.Module]) -> list[nn.Module]:
    """Return networks for (N, 2, 6, 6) with two norm layers, each with parameters and statistics of its own."""
    torch.manual_seed(0)
    models: list[nn.Module] = []
    for _ in range(MODELS):
        convolutions = [nn.Conv2d(2, 4, 3), layer(4), nn.ReLU(), nn.Conv2d(4, 4, 1), layer(4), nn.Flatten()]
        model = nn.Sequential(*convolutions, nn.Linear(64, CLASSES)).double().train()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p) * 0.3)
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(torch.rand_like(buffer) + 0.5)
        models.append(model)
    return models
