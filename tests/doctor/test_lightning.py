"""The callback: it logs what it finds as a fit starts, and stops the fit only if asked."""

import logging
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from healthy import Net, batch
from torch import Tensor

from syncnorm.doctor import CheckNorms
from syncnorm.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")


class Module(pl.LightningModule):
    def __init__(self, momentum: float = 0.1) -> None:
        super().__init__()
        self.net = Net()
        self.net.bn.momentum = momentum
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, x: Tensor, index: int) -> Tensor:
        self.steps += 1
        return self(x).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01, weight_decay=0.1)


def fit(module: Module, callback: CheckNorms, tmp_path: Path) -> None:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options: dict[str, Any] = {"max_steps": 2, "accelerator": "cpu", "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=[callback], **options, **dict.fromkeys(off, False))
    trainer.fit(module, torch.utils.data.DataLoader(batch(8), batch_size=4))


def test_it_logs_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module, callback = Module(0.99), CheckNorms((3, 8, 8), batch_size=16)
    with caplog.at_level(logging.INFO, "syncnorm.doctor"):
        fit(module, callback, tmp_path)
    assert module.steps == 2
    assert callback.diagnosis is not None
    assert {finding.check for finding in callback.diagnosis} == {"odd_momentum", "decayed"}
    assert [record.levelname for record in caplog.records if record.name == "syncnorm.doctor"] == ["WARNING"]
    assert "'net.bn'" in caplog.text


def test_a_model_that_it_cannot_run_still_trains(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Module()
    fit(module, CheckNorms((4, 8, 8)), tmp_path)
    assert module.steps == 2
    assert "the norms were not looked at" in caplog.text


def test_it_stops_if_asked(tmp_path: Path) -> None:
    module = Module(0.99)
    with pytest.raises(UserError, match="asked to stop"):
        fit(module, CheckNorms(stop=True), tmp_path)
    assert module.steps == 0
    fit(module := Module(), CheckNorms(stop=True), tmp_path)
    assert module.steps == 2
