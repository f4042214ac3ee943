"""What each rank of test_over_ranks.py runs under torchrun: small runs over ranks, held against one process.

Their data, model and partition are `elsewhere.py`'s, and no part of the package.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import elsewhere
import torch
import torch.distributed as dist
from leaving import leave
from small_runs import PLAIN, assert_same, bits, play, small_run, start

import syncnorm
from syncnorm.config import Data, Execution, Optim, Run
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
    **{"data": Data("rings"), "model": "net", "skew": "stairs"},
    **{"count": 5, "rounds": 3, "participation": 0.8, "batch": 6},
}
"""Clients of 7 to 21 samples, four of five a round: they are dealt anew in every round, and what they keep moves."""
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
    "hostile": small_run(
        **{**UNEVEN, "method": "fedavg_pooled", "participation": 1.0, "hostile": 0.4},
        **{"attack": "noise", "aggregation": "trimmed", "weighting": "uniform", "send_counts": False},
    ),
    "hostile pass": small_run(method="sbn", hostile=0.4, attack="huge_mean", aggregation="median", **UNEVEN),
    "steps": small_run(local_steps=2, weighting="uniform", held_out=2, unsampled="average", **UNEVEN),
    "chosen": small_run(method="fedbn", validation=0.2, global_norm="pooled", unsampled="average", **UNEVEN),
    "bf16-true": replace(small_run(method="fedbn", **UNEVEN), precision="bf16-true"),
    "of one's own": small_run(method="affine_home", algorithm="half_step", **UNEVEN),
    "combined": small_run(method="silobn", algorithm="scaffold", validation=0.2, **UNEVEN),
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
    told = {part: getattr(result, part) for part in ("metrics", "history", "details")}
    return {"state": rounds.server.state, "kept": kept, **told}


def alone(ranks: Ranks, file: str) -> None:
    """Write what every run ends with in one process, by name and engine."""
    ended = {both: ends(play(RUNS[both[0]], engine=AutoEngine(both[1]))) for both in pairs("loop", "cohort")}
    torch.save(ended, file)


def pairs(*engines: str) -> Iterator[tuple[str, str]]:
    """Yield runs and the engines that train them."""
    for name in RUNS:
        for engine in engines:
            unshared = name.startswith("fedtan") and engine == "loop"  # which shares no statistics
            elsewhere_rounded = name.startswith("bf16") and engine == "cohort"  # with other clients in the batch
            if not (unshared or elsewhere_rounded):
                yield name, engine


def equal(ranks: Ranks, file: str, *engines: str) -> None:
    """Play every run with these engines; all ranks must end the same, and as one process does: with the plain engine,
    to the bit."""
    expected = torch.load(file, weights_only=True)
    for name, engine in pairs(*engines):
        rounds = over_ranks(RUNS[name], engine, ranks, on_disk=name in ("fedbn", "scaffold"))
        while rounds.next < rounds.federation.world.rounds:
            rounds.play()
        mine = ends(rounds)
        others = ranks.gather(mine)
        if ranks.rank == 0:  # which compares the ends of all
            try:
                check(others, expected[name, engine], engine)
            except Exception as error:
                raise AssertionError(f"{name}, {engine}") from error


def check(others: Sequence[dict[str, Any]], alone: dict[str, Any], engine: str) -> None:
    """Compare what all ranks end with to one process."""
    for found in others:
        assert found["kept"].keys() == alone["kept"].keys()
        same(found["state"], alone["state"], engine)
        for client, own in alone["kept"].items():
            same(found["kept"][client], own, engine)
        assert bits(found["state"]) == bits(others[0]["state"])
        for part in ("metrics", "history", "details"):
            near(found[part], alone[part]) if engine == "cohort" else exactly(found[part], alone[part])


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
            assert found["metrics"] == expected["metrics"]
            assert found["history"] == expected["history"]


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
        assert found["metrics"] == expected["metrics"]


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
    elsewhere.register()
    todo = {"alone": alone, "equal": equal, "resume": resume, "same_ranks": same_ranks, "fit": fit}[sys.argv[1]]
    if world_size():
        dist.init_process_group()
    todo(Ranks(rank(), world_size() or 1), *sys.argv[2:])
    if world_size():
        leave()


if __name__ == "__main__":
    main()
