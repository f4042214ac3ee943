"""What each rank of test_over_ranks.py runs under torchrun: the small runs over ranks, held against one process."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from leaving import leave
from small_runs import PLAIN, assert_same, bits, play, small_run, start

import syncnorm
from syncnorm.config import Execution, Optim, Run
from syncnorm.environment import rank, world_size
from syncnorm.federated.checkpoint import Checkpoint
from syncnorm.federated.client.states import InMemory, OnDisk
from syncnorm.federated.engines.engine import AutoEngine
from syncnorm.federated.federation import Federation
from syncnorm.federated.ranks.network import OverRanks
from syncnorm.federated.server.network import InProcess
from syncnorm.federated.server.rounds import Rounds
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.saved import load_model

MOMENTUM = Optim(lr=0.05, momentum=0.9, schedule="cosine", warmup=0.0)
UNEVEN: dict[str, Any] = {
    **{"count": 5, "rounds": 3, "participation": 0.8, "batch": 12},
    **{"skew": "dirichlet_by_class", "alpha": 0.5},
}
"""Clients of 13 to 48 samples, four of five a round: they are dealt anew in every round, and what they keep moves."""
IDLE: dict[str, Any] = {"count": 5, "rounds": 2, "skew": "quantity", "batch": 12}
"""Clients of which two have a single sample, too few for a batch."""
METHODS = (
    *("fedavg", "fedavg_pooled", "fedbn", "silobn", "stats_shared", "fixbn", "sbn", "fbn", "hbn", "fedap"),
    *("local_only", "centralised"),
)
RUNS: dict[str, Run] = {
    **{method: small_run(method=method, **UNEVEN) for method in METHODS},
    **{
        algorithm: small_run(algorithm=algorithm, method="fedbn", **UNEVEN)
        for algorithm in ("fedprox", "scaffold", "fedadam", "fedavgm")
    },
    "fedtan": small_run(method="fedtan", engine="cohort", **UNEVEN),
    "fedtan, fedprox": small_run(method="fedtan", algorithm="fedprox", engine="cohort", **UNEVEN),
    "fedtan, idle": small_run(method="fedtan", engine="cohort", **IDLE),
    "idle": small_run(method="fedbn", **IDLE),
    "momentum": small_run(method="silobn", keep_momentum=True, optim=MOMENTUM, **UNEVEN),
    "steps": small_run(local_steps=2, weighting="uniform", held_out=2, unsampled="average", **UNEVEN),
    "chosen": small_run(method="fedbn", validation=0.2, global_norm="pooled", unsampled="average", **UNEVEN),
    "bf16-true": replace(small_run(method="fedbn", **UNEVEN), precision="bf16-true"),
    "watched": replace(small_run(method="sbn", optim=PLAIN, **UNEVEN), evaluate_every=1),
}


def over_ranks(run: Run, engine: str, ranks: Ranks, on_disk: bool = False) -> Rounds:
    """Return a run over ranks, all of whose rounds are still to be played."""
    federation = Federation(run, torch.device("cpu"))
    states = OnDisk(run.world.count) if on_disk else InMemory()  # type: ignore[union-attr]
    return Rounds(federation, OverRanks(InProcess(federation, states, AutoEngine(engine)), ranks))


def ends(rounds: Rounds) -> dict[str, Any]:
    """Return what a run ends with."""
    result = rounds.result(0.0)
    kept = rounds.network.client_states(range(rounds.federation.world.count))
    return {"state": rounds.server.state, "kept": kept, "result": result}


def check(run: Run, engine: str, ranks: Ranks, on_disk: bool = False) -> None:
    """Play a run over ranks; all must end the same, and as one process does: with the plain engine, to the bit."""
    rounds = over_ranks(run, engine, ranks, on_disk)
    while rounds.next < rounds.federation.world.rounds:
        rounds.play()
    mine = ends(rounds)
    others = ranks.gather(mine)
    if ranks.rank:
        return  # the first rank compares the ends of all
    alone = ends(play(run, engine=AutoEngine(engine)))
    for found in others:
        assert found["kept"].keys() == alone["kept"].keys()
        same(found["state"], alone["state"], engine)
        for client, own in alone["kept"].items():
            same(found["kept"][client], own, engine)
        assert bits(found["state"]) == bits(mine["state"])
        for part in ("metrics", "history", "details"):
            told, expected = (getattr(one["result"], part) for one in (found, alone))
            near(told, expected) if engine == "cohort" else exactly(told, expected)


def same(found: Any, expected: Any, engine: str) -> None:
    """Compare states: of the plain engine bit by bit."""
    if engine == "loop":
        assert bits(found) == bits(expected)
    elif expected:
        assert_same(found, expected)


def exactly(found: Any, expected: Any) -> None:
    """Compare plain data."""
    assert found == expected, (found, expected)


def near(found: Any, expected: Any) -> None:
    """Compare plain data, numbers up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            near(found[name], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            near(one, other)
    elif isinstance(expected, float):
        assert abs(found - expected) <= 1e-10 * max(1.0, abs(expected)), (found, expected)
    else:
        assert found == expected


def equal(ranks: Ranks, *engines: str) -> None:
    """Check every run with these engines."""
    for name, run in RUNS.items():
        for engine in engines:
            if name.startswith("fedtan") and engine == "loop":
                continue
            if name.startswith("bf16") and engine == "cohort":  # a batch of other clients rounds in other places
                continue
            try:
                check(run, engine, ranks, on_disk=name in ("fedbn", "scaffold"))
            except Exception as error:
                raise AssertionError(f"{name}, {engine}") from error


def resume(ranks: Ranks, folder: str) -> None:
    """Play a round in one process, the next over ranks, and the last in one process."""
    for name in ("fedbn", "scaffold", "fedap", "momentum", "chosen"):
        run = RUNS[name]
        there = replace(run, world=replace(run.world, engine="torchrun", rank_engine="loop"))
        alone, over = start(run), over_ranks(there, "loop", ranks, on_disk=name == "scaffold")
        if ranks.rank == 0:
            alone.play()
            saved(run, alone, Path(folder) / name).save()
        dist.barrier()
        checkpoint = saved(there, over, Path(folder) / name, ranks)
        assert checkpoint.resume(), name
        assert over.next == 1
        over.play()
        checkpoint.save()
        if ranks.rank == 0:
            again = start(run)
            assert saved(run, again, Path(folder) / name).resume(), name
            assert again.next == 2
            again.play()
            found, expected = ends(again), ends(play(run))
            assert bits(found["state"]) == bits(expected["state"]), name
            for client, own in expected["kept"].items():
                assert bits(found["kept"][client]) == bits(own), name
            assert found["result"].metrics == expected["result"].metrics
            assert found["result"].history == expected["result"].history


def same_ranks(ranks: Ranks, folder: str) -> None:
    """Interrupt runs of the batched engine: on as many ranks, they end to the bit as if they were not."""
    for name in ("fedbn", "momentum"):
        run = RUNS[name]
        there = replace(run, world=replace(run.world, engine="torchrun", rank_engine="cohort"))
        whole, again = over_ranks(there, "cohort", ranks), over_ranks(there, "cohort", ranks)
        for _ in range(2):
            whole.play()
        saved(there, whole, Path(folder) / name, ranks).save()
        whole.play()
        assert saved(there, again, Path(folder) / name, ranks).resume(), name
        again.play()
        found, expected = ends(again), ends(whole)
        assert bits(found["state"]) == bits(expected["state"]), name
        assert {k: bits(own) for k, own in found["kept"].items()} == {
            k: bits(own) for k, own in expected["kept"].items()
        }
        assert found["result"].metrics == expected["result"].metrics


def fit(ranks: Ranks, folder: str) -> None:
    """Train runs that share a training, one of them between with the first rank alone, and save the last model."""
    first = small_run(method="fedbn", count=9, rounds=2, participation=0.25)
    runs = [replace(first, world=replace(first.world, unsampled=rule)) for rule in ("initial", "average")]
    found = []
    for run in runs:
        there = replace(run, world=replace(run.world, engine="torchrun", rank_engine="loop"))
        result = syncnorm.fit(there, Execution(Path(folder) / "checkpoint", 0.0, Path(folder) / run.world.unsampled))
        assert ranks.gather(result.metrics) == [result.metrics] * ranks.size
        found.append(result)
        if ranks.rank == 0:
            alone = syncnorm.fit(run, Execution(model=Path(folder) / "alone"))
            assert (result.metrics, result.details) == (alone.metrics, alone.details)
            assert result.history == alone.history
            assert result.environment["ranks"] == str(ranks.size)
            models = [load_model(Path(folder) / name) for name in (run.world.unsampled, "alone")]
            assert bits(models[0].model.state_dict()) == bits(models[1].model.state_dict())
            assert models[0].clients.keys() == models[1].clients.keys()
    assert found[0].metrics != found[1].metrics


def saved(run: Run, rounds: Rounds, folder: Path, ranks: Ranks | None = None) -> Checkpoint:
    """Return the checkpoint of a run in a folder."""
    return Checkpoint(folder, run, rounds, rounds.network, 0.0, ranks)  # type: ignore[arg-type]


def main() -> None:
    """Do on this rank what the first argument names, with the others."""
    torch.set_num_threads(1)
    dist.init_process_group()
    {"equal": equal, "resume": resume, "same_ranks": same_ranks, "fit": fit}[sys.argv[1]](
        Ranks(rank(), world_size() or 1), *sys.argv[2:]
    )
    leave()


if __name__ == "__main__":
    main()
