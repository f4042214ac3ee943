"""The doctor: what is wrong with the norms of a model, what it costs, and what to write instead."""

from syncnorm.doctor.builtin import CHECKS
from syncnorm.doctor.case import Case
from syncnorm.doctor.diagnose import diagnose
from syncnorm.doctor.finding import Diagnosis, Finding
from syncnorm.doctor.registry import Check, register_check

__all__ = ["CHECKS", "Case", "Check", "Diagnosis", "Finding", "diagnose", "register_check"]
