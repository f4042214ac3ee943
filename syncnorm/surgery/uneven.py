"""Train a model in DistributedDataParallel although ranks run out of batches at different times.

with syncnorm.join(model):
    for x, y in loader: ...
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join, Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel

from syncnorm._torch import leave_join
from syncnorm.errors import UserError, with_article
from syncnorm.norms.core.ranks.collectives import gather_objects, rank_and_size
from syncnorm.norms.core.ranks.meeting import Meeting, meeting_of
from syncnorm.norms.core.ranks.relay import JOINS, Relay
from syncnorm.norms.core.synchronised import Synchronised


def join(
    model: DistributedDataParallel,
    *others: Joinable,
    enable: bool = True,
    throw_on_early_termination: bool = False,
    divide_by_initial_world_size: bool = True,
) -> Join:
    """Return the context in which `model` trains although its ranks run out of batches at different times.

    It is DDP's `model.join()`, with the same arguments, in which synchronised layers take part: a rank that has run
    out, or never had a batch, stands in for each layer's collectives with a count of 0 and with zeros. So the others
    finish, with statistics and gradients over the ranks that still have data: those of one process on these data.
    Afterwards every rank has the parameters and statistics of the last.

    Every rank enters and leaves it. A layer's collectives then run over gloo, through the host's memory, each after a
    message that says which one it is; compiled layers run eagerly.

    Args:
        model: in DistributedDataParallel, with any number of synchronised layers, in any process groups.
        others: what else has to join (torch's `Joinable`): other models in DDP, a ZeroRedundancyOptimizer.
        enable: False does nothing, for ranks that are known to have equally many batches.
        throw_on_early_termination: all ranks end with the first that runs out, in a RuntimeError.
        divide_by_initial_world_size: gradients are averaged over all ranks, those that have run out counting with
            zero; False: over those that still have data.

    Raises:
        UserError: a model that is not in DistributedDataParallel (FSDP's own layers wait for all ranks as well), or
            that holds torch's SyncBatchNorm. Within: a second derivative, a transform of torch.func, or exact
            accumulation through a synchronised layer; a synchronised layer of another model that comes first here.
            The sentence names the layer.

    Source: `torch.distributed.algorithms.Join`.
    """
    if not isinstance(model, DistributedDataParallel):
        raise UserError(
            f"join takes a model in DistributedDataParallel, and got {with_article(type(model).__name__)}: only DDP "
            "has what stands in for a rank that is out of batches. Deal every rank equally many."
        )
    models = [joinable for joinable in (model, *others) if isinstance(joinable, DistributedDataParallel)]
    layers = {f"{at}.{name}": m for at, ddp in enumerate(models) for name, m in ddp.module.named_modules()}
    for name, layer in layers.items():
        if isinstance(layer, nn.SyncBatchNorm):
            raise UserError(
                f"layer '{name.partition('.')[2]}' is torch's SyncBatchNorm, whose ranks wait for each other: write "
                "syncnorm.convert(model, 'sync_bn') before DistributedDataParallel."
            )
    shadows = enable and not throw_on_early_termination and rank_and_size(model.process_group)[1] > 1
    joined = _JoinableModel(model, layers) if shadows else model
    return _Join(
        [joined, *others],
        enable,
        throw_on_early_termination,
        divide_by_initial_world_size=divide_by_initial_world_size,
    )


class _Join(Join):
    """A join that ends where its context does, also with an error; torch's leaves a model as if in it."""

    def __exit__(self, *error: Any) -> None:
        try:
            super().__exit__(*error)
        finally:
            for joinable in self._joinables:
                if isinstance(joinable, _JoinableModel):
                    joinable.leave()


class _JoinableModel(Joinable):
    """A DDP model that joins together with the synchronised ones of `layers`."""

    def __init__(self, model: DistributedDataParallel, layers: dict[str, nn.Module]) -> None:
        self.model = model
        super().__init__()
        device = torch.device(model.device)
        groups: dict[Any, dict[str, nn.Module]] = {}
        for name, layer in layers.items():
            if isinstance(layer, Synchronised) and layer.shares():
                groups.setdefault(layer.process_group or dist.group.WORLD, {})[name] = layer
        self.meetings = [meeting_of(group, device) for group in groups]
        for meeting, (group, own) in zip(self.meetings, groups.items(), strict=True):
            meeting.relay = Relay(group, own, meeting.timeout)
        JOINS.any = bool(groups)

    def leave(self) -> None:
        """Let the model and its layers go on without join."""
        JOINS.any = False
        for meeting in self.meetings:
            meeting.relay = None
        leave_join(self.model)

    def join_hook(self, **options: Any) -> JoinHook:
        """Return the model's own hook, with the layers' around it."""
        return _Hook(self.meetings, self.model.join_hook(**options))  # type: ignore[no-untyped-call]

    @property
    def join_device(self) -> torch.device:
        """The model's."""
        return torch.device(self.model.join_device)

    @property
    def join_process_group(self) -> Any:
        """The model's."""
        return self.model.join_process_group

    @property
    def _join_config(self) -> Any:
        """The model's: it is the one that says before each forward that it still has data."""
        return self.model._join_config

    @_join_config.setter
    def _join_config(self, config: Any) -> None:
        self.model._join_config = config


class _Hook(JoinHook):
    """What a rank does that is out of batches: for the model what DDP does, and for its layers nothing, in time."""

    def __init__(self, meetings: list[Meeting], ddp: JoinHook) -> None:
        self.meetings, self.ddp = meetings, ddp

    def main_hook(self) -> None:
        """Stand in for one step."""
        for meeting in self.meetings:
            meeting.stand_in()
        self.ddp.main_hook()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Give all ranks the same model and statistics, once none has data any more."""
        for meeting in self.meetings:
            meeting.stand_in()
        self.ddp.post_hook(is_last_joiner)
        for meeting in self.meetings:
            if meeting.relay is not None:
                meeting.relay.finish()
                _hand_on_statistics(meeting.relay)


@torch.no_grad()
def _hand_on_statistics(relay: Relay) -> None:
    """Give a rank that ran out of batches the buffers of one that did not, which DDP does only on request."""
    stood_in = gather_objects(relay.served > 0, relay.group)
    if not any(stood_in):
        return
    layers = dict(sorted(relay.layers.items()))
    given: list[Any] = [{name: [b.cpu() for b in layer.buffers()] for name, layer in layers.items()}]
    dist.broadcast_object_list(given, group_src=stood_in.index(False), group=relay.group)
    for name, layer in layers.items():
        for own, value in zip(layer.buffers(), given[0][name], strict=True):
            own.copy_(value)
