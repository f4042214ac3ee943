"""Which runs may train in one computation: those that differ in numbers alone."""

from dataclasses import replace

from syncnorm.config.parts import Optim
from syncnorm.config.run import Run, run_id, training_of

NUMBERS = ("lr", "momentum", "weight_decay", "warmup")
"""The fields of `optim` in which runs of one stack may differ, beside the seed."""
ALONE = "alone"
"""How a result's environment says ("stack") that the run was not stacked; a reason may follow, after a colon."""


def stack_of(run: Run) -> str:
    """Return what is equal for all runs that may train in one computation with this one; empty for a run by itself.

    This is what a run's configuration says. Its model may still turn out to be one that cannot be stacked.
    """
    if why_alone(run):
        return ""
    neutral = {name: getattr(Optim(), name) for name in NUMBERS}
    alike = replace(training_of(run), seed=0, optim=replace(run.optim, **neutral))
    return f"{run_id(alike)} {run.data.path}".rstrip()


def why_alone(run: Run) -> str:
    """Return the setting for which a run cannot share a computation, in words; empty if there is none."""
    world = run.world
    if not world.stacks:
        return f"runs of {world.kind} are not stacked"
    reasons = {
        "its ranks are processes": world.processes() is not None,
        "it is compiled": run.compile,
        "it sets channels_last, and a stack has its own memory format": run.channels_last,
        "processes make its batches (data.workers)": run.data.workers > 0,
        "precision 16-mixed adapts its scale of the loss to each run": run.precision == "16-mixed",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
