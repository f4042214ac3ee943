"""A model is looked at before clients train it."""

import pytest
import torch
from torch import Tensor, nn

from syncnorm.config import Clients, Data, Run
from syncnorm.errors import UserError
from syncnorm.federated.inspection import inspect_model
from syncnorm.worlds import check

LABELS, NET = torch.zeros(2, dtype=torch.int64), Run(model="net")


class Hidden(nn.Module):
    """A batch norm in a plain dict, and one that is listed."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.kept = {"norm": nn.BatchNorm2d(3).eval()}

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for 3 classes."""
        return self.kept["norm"](self.norm(x)).mean((2, 3))


def lazy(classes: int) -> nn.Module:
    """Return a model that does not know its channels yet."""
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(classes))


def test_a_hidden_batch_norm_is_found() -> None:
    with pytest.raises(UserError, match="'net' uses a batch norm of 3 channels that none of its modules lists"):
        inspect_model(Hidden(), torch.rand(2, 3, 4, 4), LABELS, 3, NET)


def test_a_good_model_is_left_as_it_is() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect_model(model, torch.rand(2, 3, 1, 1), LABELS, 3, NET)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_with_other_outputs_is_refused() -> None:
    with pytest.raises(UserError, match=r"'net' returned \(2, 12\) for 2 images: .* each of 10 classes, \(2, 10\)"):
        inspect_model(nn.Flatten(), torch.rand(2, 3, 2, 2), LABELS, 10, NET)


def test_lazy_layers_are_refused() -> None:
    run = Run(data=Data("digits", size=8, train_limit=20), model=f"{__name__}:lazy", world=Clients(count=2, rounds=1))
    with pytest.raises(UserError, match="has lazy layers: build it with their numbers of channels and features"):
        check(run)
