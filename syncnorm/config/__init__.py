"""Configuration of a run: frozen dataclasses, the run id (a hash of their content), and execution settings."""

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
    validated_at,
)
from syncnorm.config.stacks import ALONE, stack_of, why_alone
from syncnorm.config.worlds import (
    RESAMPLED,
    WORLD_CONFIGS,
    ClientEngine,
    Clients,
    Devices,
    Domains,
    Engine,
    WorldConfig,
    layout,
)

__all__ = [
    "ALONE",
    "LATER",
    "MODELS",
    "RESAMPLED",
    "WORLD_CONFIGS",
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
    "stack_of",
    "training_of",
    "validated_at",
    "why_alone",
]
