"""What a run is: frozen dataclasses, the id that their content hashes to, and how a run is carried out."""

from syncnorm.config.execution import Execution, Progress
from syncnorm.config.parts import LATER, Data, Norm, Optim
from syncnorm.config.run import Result, Run, describe, run_id, training_of
from syncnorm.config.worlds import (
    Adaptation,
    ClientEngine,
    Clients,
    Devices,
    Domains,
    Engine,
    WorldConfig,
    layout,
)

__all__ = [
    "LATER",
    "Adaptation",
    "ClientEngine",
    "Clients",
    "Data",
    "Devices",
    "Domains",
    "Engine",
    "Execution",
    "Norm",
    "Optim",
    "Progress",
    "Result",
    "Run",
    "WorldConfig",
    "describe",
    "layout",
    "run_id",
    "training_of",
]
