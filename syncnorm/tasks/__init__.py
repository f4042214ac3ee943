"""What a run learns: one task a file, each with its loss, its metrics, and what its targets may be."""

from syncnorm.tasks.classification import Classification
from syncnorm.tasks.multi_label import MultiLabel
from syncnorm.tasks.registry import TASKS, register_task, task_named
from syncnorm.tasks.regression import Regression
from syncnorm.tasks.segmentation import Segmentation
from syncnorm.tasks.task import Task

__all__ = [
    "TASKS",
    "Classification",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "Task",
    "register_task",
    "task_named",
]
