"""What trains a run: the function of its world, imported when the first run of that world comes."""

import sys
from pathlib import Path

from syncnorm.config import Clients, Domains, Result, Run


def fit(run: Run, checkpoint: Path | None = None) -> Result:
    """Train and evaluate a run of any world.

    A run of clients keeps its checkpoint in the folder `checkpoint`, and goes on from what it finds there.
    """
    if isinstance(run.world, Clients):
        from syncnorm import federated

        return federated.simulate(run, checkpoint=checkpoint)
    if isinstance(run.world, Domains):
        from syncnorm import domains

        return domains.fit(run)
    from syncnorm import training

    return training.fit(run)


def check(run: Run) -> None:
    """Raise the `UserError` that `run` would end with, without training it; its data stay loaded until `forget`."""
    if isinstance(run.world, Clients):
        from syncnorm import federated

        federated.check(run)
    elif isinstance(run.world, Domains):
        from syncnorm import domains

        domains.check(run)
    else:
        from syncnorm import training

        training.check(run)


def forget() -> None:
    """Drop the data sets that this process keeps for its next run."""
    for name in ("syncnorm.training", "syncnorm.federated", "syncnorm.domains"):
        if world := sys.modules.get(name):  # what was never imported keeps nothing
            world.forget()
