"""The LightningModule that every run trains: a model, a norm, an optimiser."""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from syncnorm.config import Norm, Optim
from syncnorm.moments import acc_dtype
from syncnorm.norms.core.ranks.collectives import rank_and_size
from syncnorm.training.learner import Learner, latest, learning_rate, make_optimizer

LossWeighting = Literal["rank_mean", "global_mean"]


class Classifier(Learner, pl.LightningModule):
    """Training of `model` on the loss of a task, on one device or under DDP; the task is classification by default.

    DDP averages the ranks' gradients, so with `loss_weighting="rank_mean"` a sample on a rank with few samples has
    more weight than one on a rank with many; "global_mean" weights rank r's loss by n_r * W / N (n_r its samples, N
    all ranks' samples, W ranks; one all-reduce of a number per step), which makes the gradient that of the mean over
    the global batch. If all ranks have equally many samples, as in every run of a study, the two are the same.

    Args:
        model: takes images (N, C, H, W), returns logits (N, classes).
        norm: norm to which the model's batch norms are converted; None leaves them.
        optim: optimiser and schedule; the Trainer sets the number of epochs.
        loss_weighting: see above.
        task: name of the task (`syncnorm.tasks.TASKS`), which has the loss: cross-entropy for classification.
        precision: as of `Learner`; leave it with a Trainer that is given a precision.
    """

    def __init__(
        self,
        model: nn.Module,
        norm: Norm | str | None = None,
        optim: Optim | None = None,
        loss_weighting: LossWeighting = "rank_mean",
        task: str = "classification",
        precision: str = "float32",
    ) -> None:
        super().__init__(model, norm, optim, task, precision)
        self.loss_weighting = loss_weighting
        self.history: dict[str, list[float]] = {"train_loss": []}
        """One value per epoch: "train_loss" is the mean over the steps of this rank, in nats for classification."""
        self.seconds_before = 0.0
        """Training time in seconds in earlier processes, from whose checkpoint this one resumed."""
        self.work: dict[str, Any] = {}
        """What this process did, once it has trained (`training.ranks.work.Work.record`)."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of this rank's batch of samples and targets."""
        loss = super().training_step(batch, batch_idx)
        if self.loss_weighting == "global_mean":
            return loss * share_of_batch(len(batch[0]), loss)
        return loss

    def on_train_epoch_end(self) -> None:
        """Record the epoch's mean loss; only here does the host wait for the device."""
        self.history["train_loss"].append(torch.stack(self._losses).mean().item())
        self.forget_losses()

    @property
    def epochs_done(self) -> int:
        """Number of finished epochs."""
        return len(self.history["train_loss"])

    def latest(self) -> dict[str, float]:
        """Return the last epoch's values of the history, by name."""
        return latest(self.history, self.epochs_done)

    def remember(self) -> dict[str, Any]:
        """Return the history so far, as plain data and tensors, for `recall`."""
        return {"history": self.history, "losses": list(self._losses)}

    def recall(self, state: dict[str, Any]) -> None:
        """Restore the state that `remember` returned."""
        self.history = {name: list(values) for name, values in state["history"].items()}
        self._losses = [loss.to(self.device) for loss in state["losses"]]

    def configure_optimizers(self) -> Any:
        """Build the optimiser, and its schedule over the steps of the whole run."""
        optimizer = make_optimizer(self.named_parameters(), self.optim)
        schedule = self.schedule_at(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def schedule_at(self, optimizer: torch.optim.Optimizer, steps: int, done: int = 0) -> LambdaLR:
        """Return the schedule of an optimiser over so many steps, of which so many are done."""
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, steps, self.optim))
        if done:
            rates = [rate * learning_rate(done, steps, self.optim) for rate in schedule.base_lrs]
            then = {"last_epoch": done, "_step_count": done + 1, "_last_lr": rates}
            schedule.load_state_dict({**schedule.state_dict(), **then})
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        return schedule


def share_of_batch(samples: int, loss: Tensor) -> Tensor:
    """Return n_r * W / N for `loss`: this rank's samples divided by the mean over ranks. 1 for one rank."""
    mine = loss.new_tensor(float(samples), dtype=acc_dtype(loss.dtype))
    if rank_and_size(None)[1] == 1:
        return torch.ones_like(mine)
    total = mine.clone()
    dist.all_reduce(total)
    return mine * dist.get_world_size() / total
