"""Domains over ranks: who holds what, real ranks as virtual ones, and both as formulas written out."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import elsewhere
import pytest
import torch
import torch.nn.functional as F
from domain_ranks_program import BY_RANK, CPU, RUN, RUNS, WORLD, ends, run_of
from processes import DEVICES, torchrun

import syncnorm
from syncnorm.config import Norm, Run, describe, run_from, run_id
from syncnorm.domains import fit
from syncnorm.domains.batches import DomainBatches, deal, held_by_rank
from syncnorm.domains.prepare import prepare
from syncnorm.domains.world import train
from syncnorm.errors import UserError
from syncnorm.training.lightning.classifier import learning_rate, make_optimizer
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.worlds import check, forget

PROGRAM = Path(__file__).with_name("domain_ranks_program.py")
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHORT = replace(RUN, select="last", data=replace(RUN.data, train_limit=40, validation=0.0, augment="none"))


def changed(norm: Norm | str = "bn", **fields: Any) -> Run:
    norm = Norm(norm) if isinstance(norm, str) else norm
    return replace(SHORT, norm=norm, world=replace(WORLD, **{"ranks": 3, **fields}))


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    yield
    forget()


@pytest.mark.dist
@pytest.mark.parametrize("ranks", [2, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
@pytest.mark.usefixtures("registries")
def test_real_ranks_are_virtual_ones(ranks: int, tmp_path: Path) -> None:
    """Result, history, each test sample's score, the chosen epoch and the saved model."""
    elsewhere.register()
    out = tmp_path / "ends.pt"
    torchrun(ranks, PROGRAM, str(out), imports=DEVICES)
    real = torch.load(out, weights_only=True)
    for name in RUNS:
        virtual = ends(run_of(name, ranks, "virtual"), Ranks(), tmp_path / "virtual")
        near(real[name], virtual, name)


def near(found: Any, expected: Any, at: str) -> None:
    """Hold what real ranks end with against virtual ones, numbers up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), at
        for key, value in expected.items():
            near(found[key], value, f"{at}, {key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), at
        for one, other in zip(found, expected, strict=True):
            near(one, other, at)
    elif isinstance(expected, float | torch.Tensor):
        torch.testing.assert_close(found, expected, **CLOSE, msg=lambda m: f"{at}: {m}")
    else:
        assert found == expected, at


@pytest.mark.parametrize("percent", [0, 40, 100])
def test_the_dial_goes_from_all_domains_on_every_rank_to_one(percent: int) -> None:
    world = changed(domain_skew=float(percent)).world
    prepared = prepare(changed(domain_skew=float(percent)), CPU)
    held = held_by_rank(prepared.pool, prepared.seen, world, 0)  # type: ignore[arg-type]
    assert {sum(of_rank) for of_rank in zip(*held.values(), strict=True)} == {40}
    own = [held[name][rank] / 40 for rank, name in enumerate(held)]
    assert all(abs(share - (1 / 3 + percent / 100 * 2 / 3)) < 0.25 for share in own)
    assert (own == [1.0] * 3) == (percent == 100)
    dealt = deal(prepared.pool, prepared.seen, world, 0, 0)  # type: ignore[arg-type]
    assert [len(index) for index, _ in dealt] == [12] * 10
    every = torch.cat([index for index, _ in dealt])
    assert len(every.unique()) == 120
    later = deal(prepared.pool, prepared.seen, world, 0, 1)  # type: ignore[arg-type]
    for rank in range(3):
        first, second = ({*torch.cat([index[rank::3] for index, _ in e]).tolist()} for e in (dealt, later))
        assert first == second, "a rank keeps what it holds"
        if percent == 100:
            assert {int(ids) for _, all_ids in dealt for ids in all_ids[rank::3]} == {rank}


def test_real_ranks_take_their_part_of_every_batch() -> None:
    run = changed(domain_skew=30.0, batches="mixed")
    prepared = prepare(run, CPU)
    given = [
        list(DomainBatches(prepared.pool, prepared.seen, run.world, 0, "shift", 0, rank).deal(1, 2))  # type: ignore[arg-type]
        for rank in (None, 0, 1, 2)
    ]
    for together, *apart in zip(*given, strict=True):
        for part, whole in enumerate(together):
            assert torch.equal(torch.stack([one[part] for one in apart], 1).flatten(0, 1), whole)


def test_batches_of_one_domain_are_so_on_all_ranks_together() -> None:
    run = changed(batches="one_domain")
    prepared = prepare(run, CPU)
    dealt = deal(prepared.pool, prepared.seen, run.world, 0, 0)  # type: ignore[arg-type]
    assert {len(ids.unique()) for _, ids in dealt} == {1}
    assert len({int(ids[0]) for _, ids in dealt}) == 3


def test_a_domain_on_each_rank_trains_batch_norm_as_domain_bn_in_one_process() -> None:
    """The ranks' unsynchronised batch norms are then the domains' own: same steps, and each domain's statistics."""
    runs = [changed("bn", domain_skew=100.0), changed("domain_bn", domain_skew=100.0)]
    by_rank, by_domain = (train(run, prepare(run, CPU), CPU) for run in runs)
    assert by_rank.history["train_loss"] == pytest.approx(by_domain.history["train_loss"], rel=1e-10)
    domains = [m for m in by_domain.model.modules() if isinstance(m, syncnorm.DomainBatchNorm)]
    ranks = [m for m in by_rank.model.modules() if isinstance(m, syncnorm.GhostBatchNorm)]
    for one, other in zip(ranks, domains, strict=True):
        torch.testing.assert_close(one.rank_mean, other.domain_mean, **CLOSE)
        torch.testing.assert_close(one.rank_var, other.domain_var, **CLOSE)
    for p, q in zip(by_rank.model.parameters(), by_domain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


def test_domain_bn_by_rank_is_a_model_a_rank_whose_gradients_are_averaged() -> None:
    run = changed(BY_RANK, domain_skew=40.0)
    prepared = prepare(run, CPU)
    models = [copy.deepcopy(prepared.model) for _ in range(3)]
    optimizers = [make_optimizer(model.named_parameters(), run.optim) for model in models]
    batches = [b for epoch in range(2) for b in deal(prepared.pool, prepared.seen, run.world, run.seed, epoch)]  # type: ignore[arg-type]
    for step, (index, ids) in enumerate(batches):
        for rank, model in enumerate(models):
            optimizers[rank].zero_grad()
            optimizers[rank].param_groups[0]["lr"] = run.optim.lr * learning_rate(step, len(batches), run.optim)
            optimizers[rank].param_groups[1]["lr"] = optimizers[rank].param_groups[0]["lr"]
            mine = index[rank::3]
            with syncnorm.domain(ids[rank::3]):
                F.cross_entropy(model(prepared.pool.x[mine]), prepared.pool.y[mine]).backward()
        for together in zip(*(model.parameters() for model in models), strict=True):
            mean = torch.stack([p.grad for p in together]).mean(0)  # type: ignore[misc]
            for p in together:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    trained = train(run, prepare(run, CPU), CPU).model
    for found, model in zip(trained.copies, models, strict=True):  # type: ignore[union-attr]
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["sync_bn", "domain_bn", "gn"])
def test_what_ranks_share_does_not_depend_on_who_holds_a_sample(norm: str) -> None:
    """With norms of the whole batch, or of each sample, R ranks train as one process does on the same batches."""
    run = changed(norm, domain_skew=70.0)
    prepared = prepare(run, CPU)
    optimizer = make_optimizer(prepared.model.named_parameters(), run.optim)
    batches = [b for epoch in range(2) for b in deal(prepared.pool, prepared.seen, run.world, run.seed, epoch)]  # type: ignore[arg-type]
    for step, (index, ids) in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = run.optim.lr * learning_rate(step, len(batches), run.optim)
        optimizer.zero_grad()
        with syncnorm.domain(ids):
            F.cross_entropy(prepared.model(prepared.pool.x[index]), prepared.pool.y[index]).backward()
        optimizer.step()
    trained = train(run, prepare(run, CPU), CPU).model
    for name, value in prepared.model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=0, atol=1e-12)


def test_one_rank_is_the_same_path_with_and_without_torchrun() -> None:
    first, second, third = (
        fit(changed("domain_bn", **fields))
        for fields in ({"ranks": 1}, {"ranks": 1, "domain_skew": 100.0}, {"ranks": 1, "engine": "torchrun"})
    )
    assert first.metrics == second.metrics == third.metrics
    assert first.history == second.history == third.history
    assert "samples_by_rank" not in first.details


def test_old_runs_keep_their_ids_and_new_fields_are_part_of_one() -> None:
    plain = changed(ranks=1)
    assert not {"ranks", "engine", "domain_skew", "buffers"} & describe(plain)["world"].keys()
    runs = [plain, changed(), changed(domain_skew=50.0), changed(engine="torchrun"), changed(buffers="pooled")]
    assert len({run_id(run) for run in runs}) == 5
    assert [run_from(describe(run)) for run in runs] == runs
    assert [run.world.processes() for run in runs] == [None, None, None, 3, None]


def test_evaluation_by_rank_0_and_pooled_share_a_training_and_say_which() -> None:
    runs = [changed(domain_skew=100.0, buffers=whose) for whose in ("rank0", "pooled")]
    ours, pooled = (fit(run) for run in runs)
    assert ours.history == pooled.history
    assert ours.metrics["loss"] > pooled.metrics["loss"]
    assert ours.evaluated_by == "all training domains' together, as rank 0 has seen"
    assert pooled.evaluated_by == "all training domains' together, as all ranks have seen, pooled"
    assert ours.details["samples_by_rank"]["digits-inverted"] == [0, 40, 0]
    assert fit(changed("sync_bn")).evaluated_by == "all training domains' together"


MISTAKES = [
    ({"ranks": 0}, "world.ranks is 0: it must be at least 1"),
    ({"ranks": 5}, "world.batch 12 does not divide over 5 ranks: make it a multiple, such as 15."),
    ({"ranks": 24}, "world.batch 12 does not divide over 24 ranks"),
    ({"domain_skew": 101.0}, "world.domain_skew is 101: it must be from 0 to 100."),
    ({"domain_skew": 10.0, "batches": "one_domain"}, "write mixed, or set domain_skew to 0."),
    (
        {"batch": 3 * 60},
        "a rank's share of a batch has 60 samples, and all domains together 40 training samples on rank",
    ),
    ({"batches": "one_domain", "batch": 3 * 24}, "lower world.batch or world.ranks"),
]


@pytest.mark.parametrize(("fields", "sentence"), MISTAKES, ids=[str(fields) for fields, _ in MISTAKES])
def test_a_mistake_gets_one_sentence_before_training(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        check(changed(**fields))
    assert sentence in str(raised.value)


def test_statistics_that_nobody_can_pool_are_refused() -> None:
    with pytest.raises(UserError, match="norm 'domain_bn' evaluates by what rank 0 has seen"):
        check(changed(BY_RANK, buffers="pooled"))
    check(changed("domain_bn", buffers="pooled"))


def test_another_number_of_processes_is_found_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="needs 3 ranks and was started with 2: use torchrun --nproc-per-node 3"):
        fit(changed(engine="torchrun"))


def test_a_batch_that_leaves_a_domain_one_value_is_found_before_training() -> None:
    """Features have one position: a domain with one sample in some batch of the first epoch has no variance."""

    def counts(run: Run) -> set[int]:
        prepared = prepare(changed(), CPU)
        dealt = deal(prepared.pool, prepared.seen, run.world, run.seed, 0)  # type: ignore[arg-type]
        return {int((ids == domain).sum()) for _, ids in dealt for domain in range(3)}

    run = changed(Norm("domain_bn"), batch=3)
    assert 1 in counts(run)
    flat = replace(run, model="binary_mlp", model_options={})
    with pytest.raises(UserError, match="one value per channel of domain"):
        check(flat)


def test_more_ranks_than_domains_share_them() -> None:
    world = changed(ranks=6, domain_skew=100.0).world
    prepared = prepare(changed(ranks=6, domain_skew=100.0), CPU)
    held = held_by_rank(prepared.pool, prepared.seen, world, 0)  # type: ignore[arg-type]
    assert [[i for i, n in enumerate(of_domain) if n] for of_domain in held.values()] == [[0, 1], [2, 3], [4, 5]]
