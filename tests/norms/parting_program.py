"""What each gloo rank of test_parting_ranks.py runs: ranks part by name, and what each of them is told is checked."""

import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from leaving import leave
from torch import Tensor, nn
from torch.distributed.algorithms import Join
from torch.nn.parallel import DistributedDataParallel

import syncnorm
from syncnorm.norms.core.ranks import collectives, meeting, pulse

TIMEOUT = 6.0


class Network(nn.Module):
    """Three synchronised layers with the widths `w0`, `w1`, `w2`; a skipped one is left out of the forward."""

    def __init__(self, widths: tuple[int, int, int] = (4, 4, 4)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Sequential(nn.Linear(3, widths[0]), syncnorm.SyncBatchNorm(widths[0]))
        self.second = nn.Sequential(nn.Linear(widths[0], widths[1]), syncnorm.SyncBatchNorm(widths[1]))
        self.third = nn.Sequential(nn.Linear(widths[1], widths[2]), syncnorm.SyncBatchNorm(widths[2]))
        self.skip = ""

    def forward(self, x: Tensor) -> Tensor:
        for name, (linear, norm) in self.named_children():
            x = linear(x)
            x = x if name == self.skip else norm(x)
        return x


def step(model: nn.Module, x: Tensor | None = None) -> None:
    model(torch.randn(4, 3) if x is None else x).square().sum().backward()


def told(part: Callable[[], object]) -> tuple[str, float]:
    """Return what `part` raises, and after how many seconds."""
    start = time.monotonic()
    try:
        part()
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    raise AssertionError(f"rank {dist.get_rank()} went on")


def at_once(model: nn.Module, *words: str) -> None:
    """Check that a step raises on this rank, with these words, before the timeout."""
    said, seconds = told(lambda: step(model))
    assert all(word in said for word in ("ValueError", *words)), said
    assert seconds < TIMEOUT, (seconds, said)


def in_time(part: Callable[[], object], *words: str) -> None:
    """Check that `part` raises on this rank, with these words, with the group's timeout."""
    said, seconds = told(part)
    assert all(word in said for word in ("RuntimeError", *words)), said
    assert seconds < 2 * TIMEOUT, (seconds, said)


def skipped(widths: tuple[int, int, int]) -> None:
    """Check a layer that rank 1 skips from the second step on."""
    model = Network(widths)
    step(model)
    if dist.get_rank() == 1:
        model.skip = "second"
    at_once(model, "rank 0 ran 'second.1'", "rank 1 ran 'third.1'")


def check_at_once() -> None:
    """Layers that differ are told apart in the collective itself, after which the group serves on."""
    skipped((4, 4, 4))  # else the statistics of two layers would be mixed
    skipped((4, 4, 32))  # gloo ends a process that receives more than it expects
    skipped((4, 32, 4))
    evaluation, frozen, first = Network(), Network(), Network((4, 4, 6))
    step(evaluation)
    step(frozen)
    if dist.get_rank() == 1:
        evaluation.first.eval()
        syncnorm.freeze(frozen, "second")
        first.skip = "second"
    at_once(evaluation, "rank 0 ran 'first.1'", "rank 1 ran 'second.1'")
    at_once(frozen, "rank 0 ran 'second.1'", "rank 1 ran 'third.1'")
    at_once(first, "rank 0: 4 channels", "'second.1'", "rank 1: 6 channels", "'third.1'")
    step(Network())


def check_skipped_at_the_first_step_with_equal_widths() -> None:
    """Nothing tells them apart until one rank has no layer left."""
    model = Network()
    if dist.get_rank() == 1:
        model.skip = "second"
    in_time(lambda: step(model), "rank 0 ran 'second.1'", "rank 1 ran 'third.1'")


def check_last_layer_skipped() -> None:
    """One rank waits in a forward pass, the other in a backward pass."""
    model = Network()
    step(model)
    if dist.get_rank() == 1:
        model.skip = "third"
    in_time(lambda: step(model), "rank 0 waits in 'third.1'", "rank 1 waits in the backward pass of 'second.1'")


def check_out_of_batches() -> None:
    """One rank goes on to something else, and is told of by its own process."""
    model = Network()
    batches = 3 - dist.get_rank()
    if dist.get_rank() == 1:
        for _ in range(batches):
            step(model)
        time.sleep(TIMEOUT + 1)
        return
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        in_time(
            lambda: [step(model) for _ in range(batches)],
            "SyncBatchNorm 'first.1'",
            "rank 0 waits in 'first.1'",
            "rank 1 has run 6 layers, the last 'third.1', and no more",
        )
    assert ["rank 0 waits in 'first.1'" in str(w.message) for w in warned] == [True]


def check_gone() -> None:
    """One rank ends; rank 0, which holds the store, stays."""
    model = Network()
    step(model)
    if dist.get_rank() == 0:
        in_time(lambda: step(model), "rank 0 waits in 'first.1'", "rank 1")


def check_gone_before_a_layer() -> None:
    """Ranks meet at a new layer in their store, which does not notice that one of them is gone."""
    pulse.SILENT, pulse.BEAT, meeting.BEAT, collectives.LOOK = 1.0, 0.1, 0.1, 0.1
    step(Network())
    if dist.get_rank() == 1:
        return
    said, seconds = told(lambda: step(Network()))
    assert "rank 1 gives no sign of life any more" in said, said
    assert "rank 0 waits in 'first.1'" in said, said
    assert seconds < TIMEOUT, seconds


def check_backward() -> None:
    """One rank needs no gradient of what lies before a layer."""
    model = Network()
    step(model)
    if dist.get_rank() == 1:
        model.first.requires_grad_(False)
        model.second[0].requires_grad_(False)
    in_time(lambda: [step(model) for _ in range(2)], "rank 0 waits in the backward pass of 'second.1'")


def check_ranks_of_a_group() -> None:
    """Ranks are named by their number among all, within a group as well."""
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        return
    model = Network()
    for layer in (model.first[1], model.second[1], model.third[1]):
        layer.process_group = group
    step(model)
    if dist.get_rank() == 2:
        model.skip = "first"
    at_once(model, "rank 1 ran 'first.1'", "rank 2 ran 'second.1'")


def check_join() -> None:
    """DDP's own join is refused on every rank before anything waits; it works where it ends all ranks together."""
    model = DistributedDataParallel(Network())
    rank, said = dist.get_rank(), []
    for context in (model.join(), Join([model])):
        with context:
            said.append(told(lambda: step(model))[0])
    assert all("SyncBatchNorm 'first.1' cannot train within DDP's join()" in line for line in said), said
    dist.barrier()
    done = []

    def epoch() -> None:
        with model.join(throw_on_early_termination=True):
            for _ in range(2 + rank):
                step(model)
                done.append(rank)

    assert "inputs" in told(epoch)[0]
    assert done == [rank, rank]
    with model.join(enable=False):
        step(model, torch.randn(4 - 4 * rank, 3))  # what the refusal says to write instead


CHECKS = {name.removeprefix("check_"): check for name, check in globals().items() if name.startswith("check_")}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    CHECKS[sys.argv[1]]()
    leave(together=False)  # one may be gone
