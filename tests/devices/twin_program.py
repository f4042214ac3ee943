"""What every rank of the torchrun in test_twins.py runs: train the runs of a file, save what rank 0 ends with."""

import json
import os
import re
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist
from leaving import leave

import syncnorm
from syncnorm.config import Data, Devices, Norm, Optim, Run
from syncnorm.devices import fit
from syncnorm.devices.prepare import prepare
from syncnorm.devices.training import train
from syncnorm.errors import UserError
from syncnorm.models import make_model
from syncnorm.training.ranks.rank_statistics import statistics_by_rank

OPTIONS = {
    "brn": {"warmup": 2, "r_end": 6, "d_end": 6},
    "mabn": {"buffer": 2, "warmup": 2, "renorm_after": 4},
}
"""So that in a dozen steps these norms do more than batch norm."""


def named(norm: str) -> Norm:
    """Return the norm of a name, or, for "NAME sync", of one whose ranks share statistics."""
    name, *sync = norm.split()
    return Norm(name, {**OPTIONS.get(name, {}), **({"sync": True} if sync else {})})


def twin_run(norm: str, ranks: int, engine: str, skew: float = 50.0) -> Run:
    """Return a short run that differs from its twin in the engine alone.

    It is in float64, unless `norm` is "X in PRECISION". In "X with workers", processes make the real ranks' batches.
    """
    norm, _, precision = norm.partition(" in ")
    norm, _, working = norm.partition(" with ")
    world = Devices(ranks=ranks, per_device_batch=4, skew=skew, engine=engine)
    return Run(
        norm=named(norm),
        model_options={"width": 4},
        world=world,
        optim=Optim(epochs=2, lr=0.05),
        precision=precision or "float64",
        data=Data(size=8, workers=int(bool(working) and engine == "torchrun")),
        seed=3,
    )


def segmentation_run(norm: str, ranks: int, engine: str) -> Run:
    """Return a short run of a U-Net on segmentation, likewise; a device has scenes of its own."""
    world = Devices(ranks=ranks, per_device_batch=2, natural_skew=100, engine=engine)
    return Run(
        data=Data("shapes-photo", size=16),
        model="unet",
        norm=named(norm),
        world=world,
        optim=Optim(epochs=1, lr=0.05),
        precision="float64",
        seed=3,
        task="segmentation",
    )


def differs_by_rank() -> tuple[np.ndarray, np.ndarray]:
    """Return samples that are others on the second rank."""
    draw = np.random.default_rng(int(os.environ["RANK"] == "1"))
    return draw.random((60, 1, 8, 8), dtype=np.float32), np.arange(60) % 2


def wider_on_a_rank(shape: tuple[int, ...], classes: int) -> torch.nn.Module:
    """Build a model that is wider on the second rank."""
    return make_model("small_cnn", shape, classes, width=2 + int(os.environ["RANK"] == "1"))


RUNS = {"classification": twin_run, "segmentation": segmentation_run}


def state_after(run: Run, rank: int | None) -> dict[str, torch.Tensor]:
    """Return parameters and running statistics: batch norm's of every rank, other norms' of rank 0."""
    prepared = prepare(run, torch.device("cpu"))
    kept = [shard[:24] for shard in prepared.shards]
    classifier, _ = train(run, replace(prepared, shards=kept), rank)
    state = {name: p.detach() for name, p in classifier.model.named_parameters()}
    for name, (means, variances) in statistics_by_rank(classifier.model).items():
        state |= {f"{name}.means": means, f"{name}.variances": variances}
    if run.norm.name != "bn":
        state |= dict(classifier.model.named_buffers())
    return state


def check_fit(rank: int, ranks: int) -> None:
    """Train a run on all ranks: each has a record of its work. If data or model differ, all refuse."""
    world = Devices(ranks=ranks, per_device_batch=4, engine="torchrun")
    run = Run(Data("digits", train_limit=64, test_limit=20), model_options={"width": 2}, world=world)
    result = fit(replace(run, optim=Optim(epochs=2)))
    assert [one["rank"] for one in result.ranks] == list(range(ranks))
    assert {one["samples"] for one in result.ranks} == {64 // (4 * ranks) * 4 * 2}
    assert all(min(one["seconds"], one["waited"], one["peak_memory"]) > 0 for one in result.ranks), result.ranks
    others = "rank 0" if ranks == 2 else "ranks 0, 2 and 3"
    for changed, what in (
        (replace(run, data=Data("differs-by-rank")), "samples of the data"),
        (replace(run, model="differs-by-rank", model_options={}), "the first model"),
    ):
        said = [""] * ranks
        try:
            fit(changed)
        except UserError as error:
            said[rank] = str(error)
        dist.all_gather_object(said, said[rank])
        assert said == [said[0]] * ranks
        assert re.match(rf"the ranks differ in {what} \(\w+ on {others}; \w+ on rank 1\): give", said[0]), said


def main() -> None:
    """Train each norm on all ranks of this torchrun; rank 0 writes {norm: state} to the file named.

    Arguments: the file, the norms as JSON, and the task.
    """
    torch.set_num_threads(1)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    norms = json.loads(sys.argv[2])
    make = RUNS[sys.argv[3]]
    states = {norm: state_after(make(norm, ranks, "torchrun"), rank) for norm in norms}
    if sys.argv[3] == "classification":
        check_fit(rank, ranks)
    if rank == 0:
        torch.save(states, sys.argv[1])
    leave()


if __name__ == "__main__":
    syncnorm.register_data("differs-by-rank")(differs_by_rank)
    syncnorm.register_model("differs-by-rank")(wider_on_a_rank)
    main()
