"""What a run is: frozen dataclasses, the id that their content hashes to, and how a run is carried out."""

from syncnorm.config.execution import MODELS, Execution, Progress, silent
from syncnorm.config.parts import LATER, Data, Norm, Optim
from syncnorm.config.run import (
    Result,
    Run,
    default_of,
    describe,
    evaluated_at,
    marked,
    run_from,
    run_id,
    training_of,
)
from syncnorm.config.worlds import (
    RESAMPLED,
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
    "MODELS",
    "RESAMPLED",
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
    "default_of",
    "describe",
    "evaluated_at",
    "layout",
    "marked",
    "run_from",
    "run_id",
    "silent",
    "training_of",
]
