"""DomainBatchNorm over ranks: one process with the whole batch, wherever each domain's samples are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import ok, run_ranks
from torch import Tensor

from syncnorm import DomainBatchNorm, convert, domain, mask
from syncnorm.errors import UserError
from syncnorm.norms import NORMS
from syncnorm.norms.core.ranks.alone import alone

C, D, N = 3, 4, 11
CLOSE: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}
DEALS: dict[str, tuple[list[int], list[list[int]]]] = {
    # The domain of each sample, and each rank's samples.
    "mixed": ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2], [[0, 1, 2, 3], [4, 5, 6, 7, 8], [9, 10]]),
    "each rank its own": ([0, 0, 0, 2, 2, 2, 2, 1, 1, 1, 1], [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]),
    "one rank has no sample": ([0, 0, 3, 3, 3, 3, 3, 1, 1, 1, 1], [[0, 1, 2, 3, 4], [], [5, 6, 7, 8, 9, 10]]),
    "one sample of a domain": ([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], [[0, 1, 2], [3, 4, 5, 6], [7, 8, 9, 10]]),
}
Results = dict[str, Tensor]


def layer(**options: Any) -> DomainBatchNorm:
    made = DomainBatchNorm(C, D, **options).double()
    own = torch.Generator().manual_seed(0)  # ranks are threads, which share torch's
    with torch.no_grad():
        for p in made.parameters():
            p.uniform_(0.5, 2, generator=own)
    return made


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def steps(norm: DomainBatchNorm, ids: Tensor, x: Tensor, slope: Tensor, valid: Tensor | None = None) -> Results:
    """Take two steps of forward and backward, then evaluate."""
    told: Results = {}
    for step in range(2):
        leaf = (x + step).requires_grad_()
        with domain(ids), mask(*([] if valid is None else [valid])) if valid is not None else domain(ids):
            y = norm(leaf)
        y.backward(slope)
        told |= {f"{step} y": y.detach(), f"{step} dx": leaf.grad}  # type: ignore[dict-item]
    with domain(ids):
        told["evaluated"] = norm.eval()(x).detach()
    told |= {f"d{name}": p.grad for name, p in norm.named_parameters()}  # type: ignore[misc]
    return told | {name: value.clone() for name, value in norm.named_buffers()}


def hold(told: list[Results], right: Results, parts: list[list[int]]) -> None:
    """Hold what ranks found against one process: outputs and gradients of their samples, sums, statistics."""
    for name, value in right.items():
        if name.startswith("d") and not name.startswith("domain"):
            torch.testing.assert_close(sum(one[name] for one in told), value, **CLOSE)  # type: ignore[arg-type]
            continue
        for one, mine in zip(told, parts, strict=True):
            by_sample = name[0].isdigit() or name == "evaluated"
            torch.testing.assert_close(one[name], value[mine] if by_sample else value, **CLOSE, msg=f"{name}, {mine}")


@pytest.mark.parametrize("shape", [(C, 3, 2), (C, 5), (C, 2, 1, 3)], ids=str)
@pytest.mark.parametrize("options", [{}, {"domain_affine": True, "momentum": None}, {"affine": False}], ids=str)
@pytest.mark.parametrize("deal", DEALS)
def test_ranks_are_one_process(deal: str, options: dict[str, Any], shape: tuple[int, ...]) -> None:
    ids, parts = torch.tensor(DEALS[deal][0]), DEALS[deal][1]
    x, slope = drawn(N, *shape), drawn(N, *shape, seed=2)
    right = steps(layer(**options), ids, x, slope)
    told = ok(run_ranks(3, lambda rank: steps(layer(**options), *(t[parts[rank]] for t in (ids, x, slope)))))
    hold(told, right, parts)
    for one in told[1:]:
        assert all(torch.equal(one[name], told[0][name]) for name in one if name.startswith("domain"))


def test_masked_positions_count_nowhere() -> None:
    ids, parts = torch.tensor(DEALS["mixed"][0]), DEALS["mixed"][1]
    x, slope = drawn(N, C, 4), drawn(N, C, 4, seed=2)
    valid = drawn(N, 4, seed=3) > -1
    valid[[0, 3, 6, 9]] = False  # nothing of domain 0
    right = steps(layer(), ids, x, slope, valid)
    told = ok(run_ranks(3, lambda rank: steps(layer(), *(t[parts[rank]] for t in (ids, x, slope, valid)))))
    hold(told, right, parts)
    assert told[0]["domain_batches"].tolist() == [0, 2, 2, 0]


def test_without_sync_every_rank_is_a_process_of_its_own() -> None:
    ids, parts = torch.tensor(DEALS["each rank its own"][0]), DEALS["each rank its own"][1]
    x, slope = drawn(N, C, 4), drawn(N, C, 4, seed=2)

    def of(rank: int) -> Results:
        return steps(layer(sync=False), *(t[parts[rank]] for t in (ids, x, slope)))

    for rank, one in enumerate(ok(run_ranks(3, of))):
        for name, value in of(rank).items():
            torch.testing.assert_close(one[name], value, **CLOSE)
    with_sync = ok(run_ranks(3, lambda rank: steps(layer(), *(t[parts[rank]] for t in (ids, x, slope)))))
    assert [one["domain_batches"].tolist() for one in with_sync] == [[2, 2, 2, 0]] * 3


def test_a_group_shares_among_itself() -> None:
    ids, parts = torch.tensor(DEALS["mixed"][0]), DEALS["mixed"][1]
    x, slope = drawn(N, C, 4), drawn(N, C, 4, seed=2)
    both = parts[0] + parts[1]
    right = steps(layer(), ids[both], x[both], slope[both])

    def work(rank: int) -> Results:
        groups = [dist.new_group([0, 1]), dist.new_group([2])]
        mine = parts[rank]
        with pytest.raises(ValueError, match="got a process_group and sync=False"):
            layer(sync=False, process_group=groups[rank // 2])
        return steps(layer(process_group=groups[rank // 2]), ids[mine], x[mine], slope[mine])

    told = ok(run_ranks(3, work))
    hold(told[:2], right, [list(range(4)), list(range(4, 9))])


def test_second_derivatives_go_through_every_rank() -> None:
    ids, parts = torch.tensor(DEALS["mixed"][0]), DEALS["mixed"][1]
    x, slope = drawn(N, C, 2), drawn(N, C, 2, seed=2)

    def penalty(ids: Tensor, x: Tensor, slope: Tensor) -> tuple[Tensor, ...]:
        leaf, norm = x.clone().requires_grad_(), layer()
        with domain(ids):
            (grad,) = torch.autograd.grad((norm(leaf) * slope).sum(), leaf, create_graph=True)
        return torch.autograd.grad(grad.pow(3).sum(), leaf)

    right = penalty(ids, x, slope)[0]
    told = ok(run_ranks(3, lambda rank: penalty(*(t[parts[rank]] for t in (ids, x, slope)))[0]))
    torch.testing.assert_close(torch.cat(told), right, rtol=1e-10, atol=1e-10)


def test_float32_far_from_zero_merges_precisely() -> None:
    x = (drawn(64, C, 8, 8) + 1e3).float()

    def work(rank: int) -> Tensor:
        norm = DomainBatchNorm(C, 2, momentum=1.0)
        with domain(torch.arange(32) % 2):
            norm(x[rank::2])
        return norm.domain_var[1]

    alone_one = DomainBatchNorm(C, 2, momentum=1.0)
    with domain(torch.arange(64) // 2 % 2):
        alone_one(x)
    expected = x[torch.arange(64) // 2 % 2 == 1].double().var((0, 2, 3))
    for found in (*ok(run_ranks(2, work)), alone_one.domain_var[1]):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda rank: (torch.tensor([0, 9 if rank else 1]), drawn(2, C)), "domain 9 is unknown"),
        (
            lambda rank: (torch.tensor([0, 1, 1][: 2 + rank]), drawn(2, C)),
            "ids of 3 samples, and a layer an input of 2",
        ),
        (lambda rank: (torch.tensor([0, 1]), drawn(2, C + rank)), r"got an input of shape \(2, 4\)"),
    ],
    ids=["unknown", "length", "shape"],
)
@pytest.mark.parametrize("warm", [0, 1])
def test_a_mistake_on_one_rank_ends_all(
    wrong: Callable[[int], tuple[Tensor, Tensor]], sentence: str, warm: int
) -> None:
    """None waits for the one: at the first step all quote it, later they name its rank."""

    def work(rank: int) -> None:
        norm = layer()
        for _ in range(warm):
            with domain(torch.tensor([0, 0])):
                norm(drawn(2, C, seed=rank))
        ids, x = wrong(rank)
        with domain(ids):
            norm(x)

    errors = [str(error) for error in run_ranks(2, work)]
    with pytest.raises(ValueError, match=sentence):
        raise ValueError(errors[1])
    assert "hangs" not in errors[0]
    assert ("rank 1" in errors[0]) or ("ranks 1" in errors[0]), errors


def test_one_value_of_a_domain_on_all_ranks_together_is_said_on_all() -> None:
    def work(rank: int) -> None:
        norm = layer()
        with domain(torch.tensor([0, 0, rank])):
            norm(drawn(3, C, seed=rank))

    for error in run_ranks(2, work):
        assert "got one value per channel of domain 1, on all ranks together" in str(error)

    def masked(rank: int) -> None:
        """Only rank 1 has a sample with one valid position."""
        valid = torch.tensor([[True, True], [True, True], [not rank, not rank], [True, False]])[: 3 + rank]
        norm = layer()
        with domain(torch.tensor([0, 0, 0, 1])[: 3 + rank]), mask(valid):
            norm(drawn(3 + rank, C, 2))

    for error in run_ranks(2, masked):
        assert "got one value per channel of domain 1, on all ranks together" in str(error)

    def enough(rank: int) -> Tensor:
        norm = layer()
        with domain(torch.tensor([0, 1])):  # one here, and another there
            norm(drawn(2, C, seed=rank))
        return norm.domain_count

    assert [count.tolist() for count in ok(run_ranks(2, enough))] == [[2, 2, 0, 0]] * 2


def test_ranks_with_other_numbers_of_domains_are_named() -> None:
    def work(rank: int) -> None:
        with domain(0):
            DomainBatchNorm(C, 2 + rank)(drawn(4, C))

    for error in run_ranks(2, work):
        assert "DomainBatchNorm differs between ranks" in str(error)
        assert "2 x 3 channels" in str(error)


def test_alone_a_rank_waits_for_nobody() -> None:
    x = drawn(4, C)

    def work(rank: int) -> Tensor | None:
        if rank:
            return None
        with alone(), domain(0):
            return layer()(x)

    with domain(0):
        torch.testing.assert_close(ok(run_ranks(2, work))[0], layer()(x), **CLOSE)


def test_the_row_says_what_the_option_does() -> None:
    row = NORMS["domain_bn"]
    assert row.shares({})
    assert not row.by_device({})
    assert row.by_device({"sync": False})
    with pytest.raises(UserError, match="sync is 1: it must be True or False"):
        convert(torch.nn.BatchNorm1d(2), "domain_bn", domains=2, sync=1)
