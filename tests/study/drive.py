"""Runs a small study on the stand-in for training: `python drive.py OUT [OPTION=VALUE ...]`.

Options: jobs, sleep (seconds a run), pids (a folder to leave process ids in), engine, wandb, fault, rank; clients=1
for the study of clients, with round (seconds a round) and journal (a file of the rounds played).
"""

import sys
from dataclasses import replace
from pathlib import Path

from syncnorm.config import Clients, Devices, Run
from syncnorm.study.plan.spec import Study
from syncnorm.study.report.plots import Curve
from syncnorm.study.run.runner import run_study


def small(**options: object) -> Study:
    """Return a study of 12 runs of one device; with engine=torchrun, of two."""
    engine = options.pop("engine", "virtual")
    world = Devices(ranks=2, engine="torchrun") if engine == "torchrun" else Devices()
    return Study(
        name="small",
        question="Does it hold?",
        base=Run(world=world, model_options=options),
        vary={"norm": ["bn", "gn"], "per_device_batch": [2, 4]},
        seeds=3,
        figures=(Curve(x="per_device_batch", line="norm"),),
    )


def clients(**options: object) -> Study:
    """Return a study of 6 runs of clients, of 5 rounds."""
    return Study(
        name="clients",
        question="Does it hold?",
        base=Run(world=Clients(rounds=5), model_options=options),
        vary={"method": ["fedavg", "fedbn"]},
        seeds=3,
        figures=(Curve(x="method", line="norm"),),
    )


def main() -> None:
    out, *texts = sys.argv[1:]
    options = dict(text.split("=") for text in texts)
    jobs, wandb = int(options.pop("jobs", "2")), options.pop("wandb", "off")
    numbers = {name: float(options.pop(name)) for name in ("sleep", "rank", "round") if name in options}
    study = clients(**options, **numbers) if options.pop("clients", "") else small(**options, **numbers)
    if "fault" in options:  # in one run alone
        study = replace(study, vary={"norm": ["bn"], "per_device_batch": [2]}, seeds=1)
    run_study(study, Path(out), jobs=jobs, wandb=wandb, trainer="fake_fit")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
