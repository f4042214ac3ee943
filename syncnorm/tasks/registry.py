"""The tasks by name.

@syncnorm.register_task("mytask")
class MyTask(syncnorm.Task):
    ...
"""

from collections.abc import Callable
from typing import TypeVar

from syncnorm.errors import UserError
from syncnorm.registry import Registry, check_named
from syncnorm.tasks.classification import Classification
from syncnorm.tasks.multi_label import MultiLabel
from syncnorm.tasks.regression import Regression
from syncnorm.tasks.segmentation import Segmentation
from syncnorm.tasks.task import Task

Made = TypeVar("Made", bound=type[Task])

TASKS: Registry[type[Task]] = Registry(
    "task",
    {
        "classification": Classification,
        "segmentation": Segmentation,
        "multi_label": MultiLabel,
        "regression": Regression,
    },
)
"""The class of each task; `syncnorm.register_task` adds rows."""


def task_named(name: str) -> Task:
    """Return a task by its name; an unknown one raises `UserError`."""
    return TASKS[name]()


def register_task(name: str) -> Callable[[Made], Made]:
    """Register your own task, for `Run.task`: a decorator for a class derived from `syncnorm.Task`.

    It has a main metric's name and two functions of outputs (N, ...) and targets (N, ...), which give one number a
    sample, (N,): `losses`, whose mean training minimises, and `scores`, whose mean is the metric. `Task` says what
    else a task may define: further metrics, which targets it takes, what a model's output must look like, and what
    stratified splits go by.

    >>> @syncnorm.register_task("median")
    ... class Median(syncnorm.Task):
    ...     metric = "within_tenth"
    ...     def losses(self, outputs, targets):
    ...         return (outputs - targets).abs().mean(1)
    ...     def scores(self, outputs, targets):
    ...         return ((outputs - targets).abs() < 0.1).float().mean(1)

    Raises:
        UserError: a name that is taken; something that is no such class, or lacks its metric's name.
    """
    check_named(name, "syncnorm.register_task")

    def register(task: Made) -> Made:
        if not isinstance(task, type) or not issubclass(task, Task):
            raise UserError(f"task '{name}' is {task!r}: register a class derived from syncnorm.Task.")
        metric = getattr(task, "metric", None)
        if not isinstance(metric, str) or not metric.isidentifier():
            raise UserError(f"task '{name}' has the metric {metric!r}: write metric = \"name\" in its class.")
        for needed in ("losses", "scores"):
            if getattr(task, needed) is getattr(Task, needed):
                raise UserError(f"task '{name}' has no function {needed}: define {needed}(self, outputs, targets).")
        TASKS.add(name, task)
        return task

    return register
