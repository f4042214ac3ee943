"""The ranks of a torchrun that a user started, before they train: what was given to each, and who says what is wrong.

They speak through the launch's key-value store. A process group is not there yet, and ranks of two versions of torch
might not get one.
"""

import json
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from syncnorm.environment import rank, world_size
from syncnorm.errors import UserError
from syncnorm.registry import load_plugins, sources

COME_SECONDS = 300.0
"""Seconds for which a rank waits for the others: all have been started, but imports can take a minute."""
SAID_SECONDS = 10.0
"""Seconds for which a rank waits until the first one has said what is wrong: torchrun ends all with the first."""
KEY = "syncnorm/launch"

_launch: dict[str, Any] = {}
"""The store, once this process has met the others."""


class SaidElsewhere(UserError):
    """A mistake that rank 0 says."""


def meet(study: str = "", mistake: str = "") -> None:
    """Compare what the user gave to all ranks: versions, plugins, the study, and the first mistake in each rank's.

    Every rank of the launch calls this, and those after the first call return at once.

    Raises:
        UserError: a mistake of any rank; ranks that differ; a rank that does not come. All ranks raise it.
    """
    from torch.distributed.rendezvous import rendezvous

    from syncnorm.training.ranks.launch import differing, numbered, versions

    if _launch:
        return
    here, size = rank(), world_size() or 1
    limit = timedelta(seconds=COME_SECONDS)
    store, *_ = next(rendezvous("env://", timeout=limit))
    _launch["store"] = store
    mine = {"mistake": mistake, **versions(), **_given(study, mistake)}
    store.set(f"{KEY}/{here}", json.dumps(mine))
    try:
        store.wait([f"{KEY}/{peer}" for peer in range(size)], limit)
    except RuntimeError as error:
        away = [peer for peer in range(size) if not store.check([f"{KEY}/{peer}"])]
        raise UserError(
            f"{numbered(away)} did not come within {COME_SECONDS:.0f} s: see what that process wrote, then start all "
            "again."
        ) from error
    told = [json.loads(store.get(f"{KEY}/{peer}")) for peer in range(size)]
    if said := _mistake([one.pop("mistake") for one in told]):
        raise UserError(said)
    if difference := differing(told):
        raise UserError(f"{difference}: give all ranks the same, then start again.")


def _given(study: str, mistake: str) -> dict[str, str]:
    """Return what this rank's study and packages register; nothing where these could not be read."""
    if mistake:
        return {}
    load_plugins()
    return {"study": study, "plugins": ", ".join(sorted({source.module for source in sources()}))}


def _mistake(told: Sequence[str]) -> str:
    """Return the first mistake of any rank, with its rank unless all made the same."""
    first = next((number for number, said in enumerate(told) if said), None)
    if first is None:
        return ""
    return told[first] if len(set(told)) == 1 else f"rank {first}: {told[first]}"


def say(mistake: UserError) -> None:
    """Write a mistake to stderr, once for all ranks, each of which calls this as the last thing that it does."""
    try:
        meet(mistake=str(mistake))
    except UserError as told:
        mistake = told
    except RuntimeError:  # no store: another rank has ended the launch
        pass
    if rank() == 0:
        print(f"syncnorm: {mistake}", file=sys.stderr, flush=True)
        if store := _launch.get("store"):
            store.set(f"{KEY}/said", "yes")
    elif not isinstance(mistake, SaidElsewhere):
        try:
            _launch["store"].wait([f"{KEY}/said"], timedelta(seconds=SAID_SECONDS))
        except (KeyError, RuntimeError):
            print(f"syncnorm: rank {rank()}: {mistake}", file=sys.stderr, flush=True)
