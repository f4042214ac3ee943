"""Adaptive gradient clipping against a loop over units in NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from syncnorm import adaptive_gradient_clip
from syncnorm.errors import UserError


def by_unit(weight: Tensor, gradient: Tensor, clip: float, eps: float) -> np.ndarray:
    clipped = gradient.numpy().copy()
    for w, g in zip(weight.detach().numpy(), clipped, strict=True):
        allowed = clip * max(np.sqrt((w**2).sum()), eps)
        norm = np.sqrt((g**2).sum())
        if norm > allowed:
            g *= allowed / norm
    return clipped


def network() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A convolution and a linear layer: units with no weight, no gradient, a short and a long one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 4)).double()
    parameters = dict(model.named_parameters())
    gradients = {name: torch.randn_like(p).detach() for name, p in parameters.items()}
    with torch.no_grad():
        for name in ("0.weight", "2.weight"):
            parameters[name][0] = 0
            gradients[name][1] = 0
            parameters[name][2] = gradients[name][2] = 0
            gradients[name][3] *= 1e-3
    return parameters, gradients


@pytest.mark.parametrize("clip", [0.01, 0.5, 1e3])
@pytest.mark.parametrize("eps", [1e-3, 2.0])
def test_every_unit_is_clipped_by_itself(clip: float, eps: float) -> None:
    parameters, gradients = network()
    before = {name: g.clone() for name, g in gradients.items()}
    found = adaptive_gradient_clip(parameters, gradients, clip, eps)
    assert list(found) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    changed = set()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, before[name])
        assert not found[name].requires_grad
        if gradient.dim() == 1:
            assert torch.equal(found[name], gradient)
            continue
        right = by_unit(parameters[name], gradient, clip, eps)
        np.testing.assert_allclose(found[name].numpy(), right, rtol=1e-12, atol=0)
        rows = zip(found[name], gradient, strict=True)
        changed |= {(name, unit) for unit, (f, g) in enumerate(rows) if not torch.equal(f, g)}
    if (clip, eps) == (0.01, 1e-3):
        assert changed == {("0.weight", unit) for unit in (0, 4, 5)} | {("2.weight", 0)}


def test_names_left_out_are_left_out() -> None:
    parameters, gradients = network()
    found = adaptive_gradient_clip(parameters, {"0.weight": gradients["0.weight"]}, 0.01)
    assert list(found) == ["0.weight"]


def test_stacked_models_are_clipped_one_by_one() -> None:
    parameters, gradients = network()
    scales = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)

    def stacked(tensors: dict[str, Tensor], by: Tensor) -> dict[str, Tensor]:
        return {name: by.view(-1, *[1] * t.dim()) * t.detach() for name, t in tensors.items()}

    ps, gs = stacked(parameters, scales.flip(0)), stacked(gradients, scales)
    together = torch.func.vmap(lambda p, g: adaptive_gradient_clip(p, g, 0.1))(ps, gs)
    for k in range(3):
        alone = adaptive_gradient_clip({n: p[k] for n, p in ps.items()}, {n: g[k] for n, g in gs.items()}, 0.1)
        for name, value in alone.items():
            torch.testing.assert_close(together[name][k], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_mistakes_get_a_sentence(value: float) -> None:
    with pytest.raises(UserError, match=r"clip is .*: adaptive gradient clipping needs one above 0"):
        adaptive_gradient_clip({}, {}, value)
    with pytest.raises(UserError, match="eps is"):
        adaptive_gradient_clip({}, {}, 0.1, value)
