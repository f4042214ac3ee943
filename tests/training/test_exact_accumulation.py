"""A Lightning training in micro-batches against one in whole batches, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from syncnorm.errors import UserError
from syncnorm.training import ExactAccumulation

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": 2,
}


class Samples(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> dict[str, Any]:
        g = torch.Generator().manual_seed(index)
        return {
            "image": torch.randn(3, 6, 6, generator=g, dtype=torch.float64),
            "label": index % 2,
            "name": str(index),
        }


class Lit(pl.LightningModule):
    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        norms = nn.BatchNorm2d(4), nn.BatchNorm1d(5)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), norms[0], nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), norms[1], nn.Linear(5, 2)
        ).double()
        self.automatic_optimization = not manual
        self.sizes: list[int] = []

    def training_step(self, batch: dict[str, Any], index: int) -> dict[str, Tensor]:
        assert len(batch["name"]) == len(batch["image"])
        self.sizes.append(len(batch["image"]))
        loss = nn.functional.cross_entropy(self.net(batch["image"]), batch["label"])
        self.log("loss", loss, batch_size=len(batch["image"]))
        return {"loss": loss}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.filterwarnings("ignore")
def test_a_training_in_parts_is_the_training_in_whole_batches() -> None:
    whole, parts = Lit(), Lit()
    for module, callbacks in ((whole, []), (parts, [ExactAccumulation(3)])):
        loader = DataLoader(Samples(), batch_size=8)
        pl.Trainer(callbacks=callbacks, gradient_clip_val=1.0, **QUIET).fit(module, loader)
    assert parts.sizes == 2 * [2, 3, 3, 2, 3, 3, 2, 2, 2]
    assert "training_step" not in vars(parts)
    for (name, one), other in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-9, msg=lambda said, name=name: f"{name}: {said}")


MISTAKES: dict[str, tuple[Callable[[], ExactAccumulation], Callable[[], Lit], str]] = {
    "no part": (lambda: ExactAccumulation(0), Lit, "at least 1"),
    "manual": (lambda: ExactAccumulation(2), lambda: Lit(manual=True), "needs automatic optimisation"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence(kind: str) -> None:
    callback, module, said = MISTAKES[kind]
    with pytest.raises(UserError, match=said):
        pl.Trainer(callbacks=[callback()], **QUIET).fit(module(), DataLoader(Samples(), batch_size=8))


def test_a_batch_of_fewer_samples_than_parts_is_split_into_single_ones() -> None:
    module = Lit()
    before = copy.deepcopy(module.net[1].running_mean)
    loader = DataLoader(Samples(), batch_size=2)
    pl.Trainer(callbacks=[ExactAccumulation(8)], **{**QUIET, "max_epochs": 1}).fit(module, loader)
    assert set(module.sizes) == {1}
    assert not torch.equal(before, module.net[1].running_mean)
