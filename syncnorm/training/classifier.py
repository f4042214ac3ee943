"""The LightningModule that every run trains: a model, a norm, an optimiser."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from syncnorm.config import Norm, Optim
from syncnorm.moments import acc_dtype
from syncnorm.surgery import convert

LossWeighting = Literal["rank_mean", "global_mean"]
BY_DOMAIN = ("domain_weight", "domain_bias")
"""A norm's parameters for each domain, (D, C)."""


class Classifier(pl.LightningModule):
    """Cross-entropy training of `model`, on one device or under DDP.

    DDP averages the ranks' gradients, so with `loss_weighting="rank_mean"` a sample on a rank with few of them
    counts more than one on a rank with many; "global_mean" weights rank r's loss by n_r * W / N (n_r its samples, N
    all ranks' samples, W ranks; one all-reduce of a number a step), which makes the gradient that of the mean over
    the global batch. Where all ranks hold as many samples, as in every run of a study, the two are the same.

    Args:
        model: takes images (N, C, H, W), returns logits (N, classes).
        norm: converts the model's batch norms to this norm; None leaves them.
        optim: optimiser and schedule; its epochs are the Trainer's to set.
        loss_weighting: see above.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm | str | None = None,
        optim: Optim | None = None,
        loss_weighting: LossWeighting = "rank_mean",
    ) -> None:
        super().__init__()
        norm = Norm(norm) if isinstance(norm, str) else norm
        self.model = model if norm is None else convert(model, norm.name, **norm.options)
        self.optim = optim or Optim()
        self.loss_weighting = loss_weighting
        self.history: dict[str, list[float]] = {"train_loss": []}
        """One value an epoch: "train_loss" is the mean over the steps of this rank, in nats."""
        self.seconds_before = 0.0
        """What the training took in processes that were killed, whose checkpoint this one goes on from."""
        self._losses: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes) for images (N, C, H, W)."""
        logits: Tensor = self.model(x)
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of this rank's batch of images and labels."""
        x, y = batch
        logits = self(x)
        # Without samples there is no mean, but a gradient of zero that the other ranks wait for.
        loss = F.cross_entropy(logits, y) if len(x) else logits.sum()
        self._losses.append(loss.detach())
        if self.loss_weighting == "global_mean":
            return loss * share_of_batch(len(x), loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Keep the epoch's mean loss; the one place where the host waits for the device."""
        self.history["train_loss"].append(torch.stack(self._losses).mean().item())
        self.forget_losses()

    @property
    def epochs_done(self) -> int:
        """Number of epochs that have ended."""
        return len(self.history["train_loss"])

    def latest(self) -> dict[str, float]:
        """Return what the last epoch gave, by series of the history."""
        return latest(self.history, self.epochs_done)

    def forget_losses(self) -> None:
        """Drop the losses of the steps since the last epoch; for those who call `training_step` themselves."""
        self._losses.clear()

    def remember(self) -> dict[str, Any]:
        """Return what the epochs gave so far, as plain data and tensors, for `recall` to take up."""
        return {"history": self.history, "losses": list(self._losses)}

    def recall(self, state: dict[str, Any]) -> None:
        """Go on from what `remember` returned."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._losses = [loss.to(self.device) for loss in state["losses"]]

    def configure_optimizers(self) -> Any:
        """Build the optimiser, and its schedule over the steps of the whole run."""
        optimizer = make_optimizer(self.named_parameters(), self.optim)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps, self.optim))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def latest(history: dict[str, list[float]], now: int) -> dict[str, float]:
    """Return what epoch or round `now`, counted from 1, gave by series; one with gaps may have given nothing."""
    evaluated = history.get("accuracy_at", [])[-1:] == [now]
    return {
        name: values[-1]
        for name, values in history.items()
        if values and name != "accuracy_at" and (evaluated or len(values) == now)
    }


def share_of_batch(samples: int, loss: Tensor) -> Tensor:
    """Return n_r * W / N for `loss`: this rank's samples, over the mean of all ranks' samples. 1 for one rank."""
    mine = loss.new_tensor(float(samples), dtype=acc_dtype(loss.dtype))
    if not dist.is_available() or not dist.is_initialized():
        return torch.ones_like(mine)
    total = mine.clone()
    dist.all_reduce(total)
    return mine * dist.get_world_size() / total


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], optim: Optim) -> torch.optim.Optimizer:
    """Build the optimiser; weight decay acts on tensors of two and more dimensions, not on norms and biases."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in parameters:
        if p.requires_grad:
            (decayed if p.dim() > 1 and not name.endswith(BY_DOMAIN) else others).append(p)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": optim.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=optim.lr)


def learning_rate(step: int, steps: int, optim: Optim) -> float:
    """Return the factor on the peak learning rate at `step` of `steps`: warm-up, then constant or half a cosine."""
    warmup = optim.warmup * steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if optim.schedule == "constant":
        return 1.0
    return 0.5 * (1 + cos(pi * (step - warmup) / max(steps - warmup, 1)))
