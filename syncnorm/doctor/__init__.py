"""The doctor: what is wrong with the norms of a model, what it costs, and what to write instead.

Names are imported at first use; `CheckNorms` needs Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from syncnorm.doctor.case import Case
from syncnorm.doctor.diagnose import diagnose
from syncnorm.doctor.diagnosis import Diagnosis
from syncnorm.doctor.finding import Finding
from syncnorm.doctor.fix import Fix, Fixed, fix
from syncnorm.doctor.registry import CHECKS, register_check
from syncnorm.doctor.rows import Check

if TYPE_CHECKING:
    from syncnorm.doctor.lightning import CheckNorms

# fmt: off
__all__ = [
    "CHECKS", "Case", "Check", "CheckNorms", "Diagnosis", "Finding", "Fix", "Fixed", "diagnose", "fix",
    "register_check",
]
# fmt: on


def __getattr__(name: str) -> Any:
    if name == "CheckNorms":
        return import_module("syncnorm.doctor.lightning").CheckNorms
    raise AttributeError(f"module 'syncnorm.doctor' has no attribute '{name}'")
