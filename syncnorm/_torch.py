"""The private parts of PyTorch that syncnorm uses, each behind a function that documents the expected behaviour.

A PyTorch release may change any of them without notice. tests/test_torch_contract.py checks the behaviour described
here, so that such a change shows there first and needs changes in this file alone.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed import _functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel

# Compiled collectives carry gradients since torch 2.11; before, a compiled model breaks its graph at the layer.
COMPILES_COLLECTIVES = hasattr(functional, "all_reduce_backward")

assert_recorded: Callable[..., None] = torch._assert
"""`assert_recorded(condition, message)`: an assertion that fx records, and that TorchScript accepts and omits."""


_graph_task: Callable[[], int] = torch._C._current_graph_task_id  # found once: layers ask at every call


def in_backward() -> bool:
    """Return whether this code runs inside a backward pass, for example in a checkpoint's recomputation."""
    return _graph_task() != -1


_transforms: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def transforming() -> bool:
    """Return whether this code runs inside a transform of torch.func, such as vmap or grad."""
    return _transforms() is not None


def beta_samples(alpha: float, *shape: int) -> Tensor:
    """Draw from Beta(alpha, alpha) what `torch.distributions.Beta` draws; transforms of torch.func take it too."""
    return torch._sample_dirichlet(torch.full((*shape, 2), alpha))[..., 0]


def key_value_store() -> Any:
    """Return the key-value store that the ranks of the default process group share."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def group_timeout(group: ProcessGroup, device: torch.device) -> float:
    """Return the seconds after which the collectives of `group` on tensors of `device` fail."""
    try:
        limit = group._get_backend(device).options._timeout
    except (AttributeError, RuntimeError):  # a backend that is no process group of torch's own kind
        limit = key_value_store().timeout
    return float(limit.total_seconds())


def time_gradients(model: DistributedDataParallel) -> None:
    """Let DDP time every step, not one in a hundred; for CPUs, where no device has to be waited for."""
    model._set_ddp_runtime_logging_sample_rate(1)  # type: ignore[no-untyped-call]


def seconds_for_gradients(model: DistributedDataParallel) -> float:
    """Return the seconds in which backward passes waited for other ranks' gradients, all steps together.

    DDP times the exchange of gradients, and how much of it ran while gradients were still computed; its means, over
    the steps that it timed, times the number of steps.
    """
    timed = model._get_ddp_logging_data()  # type: ignore[no-untyped-call]
    exposed = timed.get("avg_backward_comm_time", 0) - timed.get("avg_backward_compute_comm_overlap_time", 0)
    return max(float(exposed), 0.0) * 1e-9 * (int(timed.get("iteration", 0)) + 1)


def joining_unevenly() -> bool:
    """Return whether this is the forward of a DDP model within `join()` that lets ranks run out of batches."""
    model = DistributedDataParallel._active_ddp_module
    if model is None:
        return False
    config = model._join_config
    return bool(config.enable and not config.throw_on_early_termination)


def sum_in_graph(x: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the sum of `x` over the ranks as an operation that `torch.compile` keeps in its graph."""
    summed: Tensor = functional.all_reduce(x, "sum", group or dist.group.WORLD)  # type: ignore[arg-type]
    return summed


def compiler_is_loaded() -> bool:
    """Return whether torch's compiler has been imported, without importing it, which takes seconds."""
    return "torch._dynamo" in sys.modules


def uncompiled_module(model: nn.Module) -> nn.Module:
    """Return the original module of `torch.compile(model)`; any other module is returned unchanged."""
    inner: nn.Module = getattr(model, "_orig_mod", model)
    return inner


def outside_vmap(call: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """Call a function on the whole batch from inside `torch.vmap`, where plain code sees only a single row.

    For a vmap over R rows the function gets its first tensor as (B, R, ...), further ones as (R, ...), and returns
    (B, R, ...). Tensors that all rows share are expanded. Autograd records the function's operations.

    PyTorch does the same for a `torch.autograd.Function` with a vmap rule; this avoids the cost of that class.
    """
    from torch._C._functorch import _add_batch_dim, _unwrap_batched
    from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter

    vmap: Any = retrieve_current_functorch_interpreter()
    level, rows = vmap.level(), vmap.batch_size()
    first, *others = (
        None if tensor is None else _rows_at(int(place == 0), *_unwrap_batched(tensor, level), rows)
        for place, tensor in enumerate(tensors)
    )
    with vmap.lower():
        result = call(first, *others)
    return _add_batch_dim(result, 1, level)


def _rows_at(place: int, tensor: Tensor, dim: int | None, rows: int) -> Tensor:
    if dim is None:  # the same for all
        tensor, dim = tensor.expand(rows, *tensor.shape), 0
    return tensor.movedim(dim, place)
