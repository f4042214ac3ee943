"""Ranks that are uneven, empty or mismatched, in a thousand ways, on gloo processes.

A way (`ways.py`) is a small network with two synchronised layers on two or three ranks for one to three steps, in
float64. Where its ranks are only uneven, every rank must end with what one process gives for the whole batch:
outputs, gradients of inputs and running statistics. Where one rank differs from the others (in channels, modes,
layers, steps, types), each rank must end by itself, with an error, or with numbers that are right all the same. A
case is a number of ways, one after another in the same processes, each in a group of its own.
"""

import faulthandler
import gc
import os
import signal
import time
import warnings
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from fates import codes_of
from forking import store
from kill_program import forked
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from ways import RANKS, Way, differs, way_of

import syncnorm

WAYS = 1000
BATCH = 20
TIMEOUT = 1.0
"""Seconds of a group's timeout, where ranks are mismatched; where they are not, nobody has to wait for it."""
LATE = 15.0
"""Seconds in which a rank ends that waits for the others: in the layer, and in what comes after it."""
LIMIT = 30.0
"""Seconds after which a rank hangs."""


def lacks() -> str:
    """Lack nothing."""
    return ""


def cases(small: bool) -> list[str]:
    """Return the ranges of ways."""
    return ["0 to 11"] if small else [f"{first} to {first + BATCH - 1}" for first in range(0, WAYS, BATCH)]


def play(name: str, folder: Path) -> Counter[str]:
    """Play some ways, and judge what each rank ended with."""
    first, last = map(int, name.split(" to "))
    left, counts, wrong = list(range(first, last + 1)), Counter[str](), []
    while left:
        codes = launch(left, folder)
        while left:
            way = way_of(left[0])
            told = [_read(folder, way.number, rank) for rank in range(way.ranks)]
            found = [one for one in told if one is not None]
            left = left[1:]
            if len(found) < way.ranks:
                logs = "\n".join(Path(folder, f"{rank}.log").read_text()[-1200:] for rank in range(RANKS))
                wrong.append(f"{_what(way)} took a rank along: {codes} {logs}")
                break
            judge(way, found, counts, wrong)
    assert not wrong, f"{len(wrong)} of {last - first + 1}: {'; '.join(wrong)}"
    return counts


def judge(way: Way, told: list[dict[str, Any]], counts: Counter[str], wrong: list[str]) -> None:
    """Count a way, or say what is wrong with it."""
    errors, slow = [one["said"] for one in told], max(one["seconds"] for one in told)
    others = {rank: one for rank, one in enumerate(told) if way.valid or rank != way.odd}
    problem = f"took {slow:.1f} s" if slow > LATE else ""
    if way.valid:
        problem = problem or next(filter(None, errors), "")
    if not any(errors):
        problem = problem or differs(way, others)  # without an error, numbers must be right
    if problem:
        wrong.append(f"{_what(way)}: {problem}")
    elif way.valid:
        counts[f"{way.kind} ways, all equal to one process with the whole batch"] += 1
    elif not any(errors):
        counts["mismatched ways that change no number on the other ranks"] += 1
    else:
        when = "before the timeout" if slow < TIMEOUT else "with the timeout"
        counts[f"mismatched ways, all ended by an error {when}"] += 1


def launch(numbers: list[int], folder: Path) -> list[int]:
    """Play ways on processes of their own; return how these ended."""
    reading, writing = os.pipe()
    server = forked(lambda: store(writing))
    os.close(writing)
    port = int(os.read(reading, 16))
    os.close(reading)
    ranks = [forked(lambda rank=rank: play_all(rank, numbers, port, folder)) for rank in range(RANKS)]  # type: ignore[misc]
    try:
        return codes_of(ranks, LIMIT * len(numbers))
    finally:
        os.kill(server, signal.SIGKILL)
        codes_of([server])


def play_all(rank: int, numbers: list[int], port: int, folder: Path) -> None:
    """Play ways on this rank."""
    log = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for way in map(way_of, numbers):
        if rank >= way.ranks:
            continue
        client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        own = dist.PrefixStore(str(way.number), client)
        limit = timedelta(seconds=LIMIT if way.valid else TIMEOUT)
        meet(own, "here", rank, way.ranks)  # one that was idle comes early
        dist.init_process_group("gloo", store=own, rank=rank, world_size=way.ranks, timeout=limit)
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        began, found = time.monotonic(), {"said": ""}
        try:
            found |= on_rank(way, rank)
        except Exception as error:
            found["said"] = f"{type(error).__name__}: {error}"
        found["seconds"] = time.monotonic() - began
        gc.collect()
        meet(own, "done", rank, way.ranks)  # a rank that left at once would be what the others complain of
        dist.destroy_process_group()
        draft = folder / f"{way.number} {rank}.draft"
        torch.save(found, draft)
        draft.rename(folder / f"{way.number} {rank}.pt")
        faulthandler.cancel_dump_traceback_later()


def meet(own: Any, what: str, rank: int, ranks: int) -> None:
    """Wait for the other ranks, which may be busy with the way before."""
    own.set(f"{what} {rank}", "yes")
    own.wait([f"{what} {peer}" for peer in range(ranks)], timedelta(seconds=2 * LIMIT))


def on_rank(way: Way, rank: int) -> dict[str, Any]:
    """Take the steps of a rank; return what it has then."""
    odd = way.kind if rank == way.odd and not way.valid else ""
    other = "sync_bn" if way.norm == "brn" else "brn"
    model = way.network(True, way.width + (odd == "channels"), other if odd == "other norm" else None)
    steps = way.steps + {"more steps": 1, "fewer steps": -1}.get(odd, 0)
    told: dict[str, Any] = {"y": [], "dx": []}
    with syncnorm.domain(0):
        if way.kind == "join":
            with syncnorm.join(ddp := DistributedDataParallel(model)):
                for number in range(steps - (rank == way.odd)):
                    step(way, rank, ddp, number, "", told)
            del ddp
        else:
            for number in range(steps):
                change(model, odd if number == way.at else "")
                step(way, rank, model, number, odd if number == way.at else "", told)
    told["state"] = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    return told


def change(model: nn.Sequential, odd: str) -> None:
    """Make a rank's model odd."""
    if odd == "eval":
        model[1].eval()
    elif odd == "frozen":
        syncnorm.freeze(model, "1")
    elif odd == "dtype":
        model.float()
    elif odd == "skip last":
        model[4] = nn.Identity()
    elif odd == "skip first":
        model[1] = nn.Identity()
    elif odd == "swap":
        model[1], model[4] = model[4], model[1]
    elif odd == "raises":
        raise KeyError("a mistake of the user's own")


def step(way: Way, rank: int, model: nn.Module, number: int, odd: str, told: dict[str, Any]) -> None:
    """Take a step, in which this rank may be odd."""
    there = min(number, way.steps - 1)
    x = way.batch(there)[way.mine(there, rank)].clone()
    if odd == "dtype":
        x = x.float()
    elif odd == "bad input":
        x = x.new_zeros(3, 7, *x.shape[2:])
    elif odd == "dims":
        x = x.flatten(1) if x.dim() > 2 else x.view(*x.shape, 1, 1)
    leaf = x.requires_grad_()
    with torch.set_grad_enabled(odd != "no grad"):
        y = model(leaf)
    if odd != "no grad":
        y.sin().sum().backward()
    told["y"].append(y.detach())
    told["dx"].append(leaf.grad)


def _what(way: Way) -> str:
    return f"way {way.number} ({way.kind}, {way.norm}, rank {way.odd} of {way.ranks}, {way.sizes}, side {way.side})"


def _read(folder: Path, number: int, rank: int) -> dict[str, Any] | None:
    path = folder / f"{number} {rank}.pt"
    if not path.exists():
        return None
    found: dict[str, Any] = torch.load(path, weights_only=True)
    return found
