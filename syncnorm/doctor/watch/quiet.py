"""Run a model so that nothing outside of it notices: random states, hooks, and the layer at which it fails."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from syncnorm.doctor.watch.inputs import Inputs
from syncnorm.errors import UserError
from syncnorm.surgery.layers.preconditions import in_a_line, uncompiled

Enter = Callable[[nn.Module, str, bool, Any], None]
Leave = Callable[[nn.Module, str, bool, Any, Any], None]


@contextmanager
def same_chance(model: nn.Module) -> Iterator[None]:
    """Run with the random numbers of a fixed seed; afterwards restore the states of torch, NumPy and Python."""
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _restore(outside: dict[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    with torch.no_grad():
        for tensor, before in (pair for pairs in outside.values() for pair in pairs):
            if not torch.equal(tensor, before):
                tensor.copy_(before)
            tensor.grad = None


@contextmanager
def watched_modules(model: nn.Module, inputs: Inputs, enter: Enter, leave: Leave) -> Iterator[list[str]]:
    """Call `enter` and `leave` around every forward of a module, listed in the model or not.

    They get the module, its name (that of the module which called it if it is not listed), whether it is listed, and
    its arguments. Yields the names of the modules that are running, outermost first. An error names the innermost.

    Raises:
        UserError: the model fails.
    """
    names = {module: name for name, module in model.named_modules()}
    stack: list[str] = []
    modules: list[nn.Module] = []

    outside: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def before(module: nn.Module, args: Any) -> None:
        if module not in names and module not in outside:  # held by a global variable, perhaps, and so not copied
            own = [*module.parameters(), *module.buffers()]
            outside[module] = [(tensor, tensor.detach().clone()) for tensor in own]
        name = names.get(module, stack[-1] if stack else "")
        stack.append(name)
        modules.append(module)
        enter(module, name, module in names, args)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        while modules[-1] is not module:  # one that failed, which the model's forward has caught
            stack.pop(), modules.pop()
        leave(module, stack[-1], module in names, args, output)
        stack.pop(), modules.pop()

    with ExitStack() as all_hooks:
        for hook in (register_module_forward_pre_hook(before), register_module_forward_hook(after)):
            all_hooks.callback(hook.remove)
        for context in (same_chance(model), uncompiled(), warnings.catch_warnings()):
            all_hooks.enter_context(context)
        warnings.simplefilter("ignore")
        all_hooks.callback(_restore, outside)
        try:
            yield stack
        except UserError:
            raise
        except Exception as error:  # a user's forward may do anything
            where = f" in layer '{stack[-1]}'" if stack and stack[-1] else ""
            mode = "training" if model.training else "evaluation"
            raise UserError(
                f"the model fails in {mode} on {inputs.words} ({inputs.given}){where}: {in_a_line(error)}."
            ) from error


def nothing(*_: Any) -> None:
    """Do nothing, as a hook."""


@contextmanager
def running(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Run without gradients, with fixed chance; an error names the layer.

    Raises:
        UserError: the model fails.
    """
    with torch.no_grad(), watched_modules(model, inputs, nothing, nothing):
        yield
