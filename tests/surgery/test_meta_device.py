"""A model that is built and converted on the meta device, filled there or elsewhere, and then reverted."""

import pytest
import torch
from torch import Tensor, nn

from syncnorm import convert, domain, norm_names, revert

C = 4
OPTIONS = {"ghost_bn": {"virtual_ranks": 2}, "domain_bn": {"domains": 2}, "eval_norm": {"batch": 2}}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))


def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = convert(network(), name, **OPTIONS.get(name, {}))
    with domain(torch.arange(6) % 2):
        model(torch.randn(6, 3, 7, 7) * 2 + 1)
    return model


def state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", norm_names())
@pytest.mark.parametrize("how", ["to_empty", "assign"])
def test_it_reverts_to_what_a_model_built_elsewhere_reverts_to(name: str, how: str) -> None:
    full = trained(name)
    with torch.device("meta"):
        model = convert(network(), name, **OPTIONS.get(name, {}))
    if how == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(state(full), assign=how == "assign")
    reverted, expected = revert(model), state(revert(full))
    assert type(reverted[0]) is nn.Conv2d
    assert type(reverted[1]) is nn.BatchNorm2d
    for key, value in reverted.state_dict().items():
        assert torch.equal(value, expected[key]), key
    assert reverted(torch.randn(4, 3, 6, 6)).isfinite().all()
    assert all(isinstance(reverted[1].get_parameter(key), nn.Parameter) for key in ("weight", "bias"))
