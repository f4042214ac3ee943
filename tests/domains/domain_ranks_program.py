"""What each rank of test_domains_over_ranks.py runs under torchrun: runs over ranks, and what rank 0 ends with.

Their domains and model are `elsewhere.py`'s, and no part of the package.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import elsewhere
import torch
from leaving import leave

from syncnorm.config import Data, Domains, Execution, Norm, Optim, Run
from syncnorm.domains import fit
from syncnorm.domains.prepare import prepare
from syncnorm.domains.world import train
from syncnorm.environment import rank, world_size
from syncnorm.training.ranks.exchange import Ranks
from syncnorm.training.ranks.launch import join_ranks
from syncnorm.training.saved import load_model

CPU = torch.device("cpu")
WORLD = Domains(("digits", "digits-inverted", "digits-noisy", "digits-fonts"), unseen=("digits-fonts",), batch=12)
RUN = Run(
    data=Data("few", train_limit=60, test_limit=20, validation=0.2, augment="shift"),
    model_options={"width": 4},
    optim=Optim(epochs=2),
    precision="float64",
    select="best",
)
BY_RANK = Norm("domain_bn", {"sync": False})
AFFINE = Norm("domain_bn", {"domain_affine": True})
ELSEWHERE: dict[str, Any] = {"domains": tuple(elsewhere.DOMAINS), "unseen": ("rings-far",)}
RUNS: dict[str, tuple[Norm, dict[str, Any]]] = {
    "bn": (Norm("bn"), {"domain_skew": 50.0, "buffers": "pooled"}),
    "bn, adapted": (Norm("bn"), {"domain_skew": 100.0, "adapt": "adabn"}),
    "sync_bn": (Norm("sync_bn"), {"domain_skew": 100.0, "batches": "mixed"}),
    "domain_bn": (AFFINE, {"domain_skew": 100.0, "adapt": "ensemble"}),
    "domain_bn, in part": (Norm("domain_bn"), {"domain_skew": 37.5, "adapt": "pooled"}),
    "domain_bn, one domain": (Norm("domain_bn"), {"batches": "one_domain", "adapt": "adabn"}),
    "domain_bn by rank": (BY_RANK, {"domain_skew": 75.0}),
    "gn": (Norm("gn"), {}),
}


def run_of(name: str, ranks: int, engine: str) -> Run:
    """Return a short run in float64 that differs from its twin in the engine alone."""
    norm, options = RUNS[name]
    world = replace(WORLD, ranks=ranks, engine=engine, **ELSEWHERE, **options)
    return replace(RUN, norm=norm, model="net", world=world)


def ends(run: Run, ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Return what a run ends with: its result, and the model that it saves."""
    result = fit(run, Execution(model=folder / run.norm.name))
    told = ranks.gather((result.metrics, result.history, result.details))
    assert all(one == told[0] for one in told), "ranks return other results"
    found = {"metrics": result.metrics, "history": result.history, "details": result.details}
    state = load_model(folder / run.norm.name).model.state_dict() if ranks.rank == 0 else {}
    return {**found, "state": state, "by": result.evaluated_by}


def main() -> None:
    """Train every run over the ranks of this torchrun; rank 0 writes {name: ends} to the file named."""
    torch.set_num_threads(1)
    elsewhere.register()
    out, ranks = Path(sys.argv[1]), join_ranks()
    assert (ranks.rank, ranks.size) == (rank(), world_size())
    found = {name: ends(run_of(name, ranks.size, "torchrun"), ranks, out.parent / "models") for name in RUNS}
    parameters = train(run := run_of("bn", ranks.size, "torchrun"), prepare(run, CPU), CPU, None, ranks).model
    for p in parameters.parameters():
        assert all(torch.equal(p, other) for other in ranks.gather(p.detach()))
    if ranks.rank == 0:
        torch.save(found, out)
    leave()


if __name__ == "__main__":
    main()
