"""The private parts of PyTorch that syncnorm uses, each behind a function that documents the expected behaviour.

A PyTorch release may change any of them without notice. tests/test_torch_contract.py checks the behaviour described
here, so that such a change shows there first and needs changes in this file alone.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
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


def leave_join(model: DistributedDataParallel) -> None:
    """Let a DDP model forget the `join()` that it was in, which torch leaves on: `joining_unevenly` is False then."""
    model._join_config = model._join_config._replace(
        enable=False, throw_on_early_termination=False, is_first_joinable=False
    )


def flat_sharded(model: nn.Module) -> list[Any]:
    """Return the modules of `model` that FSDP1 (FullyShardedDataParallel) wraps, from the outside in."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")  # importing it takes seconds
    return [m for m in model.modules() if fsdp is not None and isinstance(m, fsdp.FullyShardedDataParallel)]


def fully_sharded(model: nn.Module) -> list[Any]:
    """Return the modules of `model` that FSDP2 (`fully_shard`) was applied to, from the outside in."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return [m for m in model.modules() if fsdp is not None and isinstance(m, fsdp.FSDPModule)]


def _sharding_groups(model: nn.Module) -> Iterator[Any]:
    """Yield what FSDP2 keeps of each set of parameters that it shards together."""
    for module in fully_sharded(model):
        state = module._get_fsdp_state()
        if hasattr(state, "_fsdp_param_groups"):
            yield from state._fsdp_param_groups
        elif state._fsdp_param_group is not None:  # older releases of torch have one at most
            yield state._fsdp_param_group


def sharded_parameters(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Return all parameters that FSDP2 shards: the module that holds each, its name there, and the shard.

    The module's own attribute is the whole parameter while the module runs, and the shard at other times.
    """
    found = []
    for group in _sharding_groups(model):
        for kept in group.fsdp_params:
            info = kept._module_info
            places = [(info.module, info.param_name)]
            places += zip(info.shared_modules, info.shared_param_names, strict=True)
            found += [(module, name, kept.sharded_param) for module, name in places]
    return found


def move_sharded(model: nn.Module, swaps: Mapping[nn.Module, nn.Module]) -> None:
    """Let FSDP2 find the parameters of each module of `swaps` in the module that took its place."""
    for group in _sharding_groups(model):
        for kept in group.fsdp_params:
            info = kept._module_info
            info.module = swaps.get(info.module, info.module)
            info.shared_modules = [swaps.get(module, module) for module in info.shared_modules]
        # Hooks that shard before state_dict() reads lie on the modules that held parameters at the first forward.
        hooks = (group._module_to_pre_save_state_dict_hook_handle, group._module_to_pre_load_state_dict_hook_handle)
        registered = any(hooks)
        for handles in hooks:
            for handle in handles.values():
                handle.remove()
            handles.clear()
        if registered:
            group._register_state_dict_hooks()


def sharding_group(model: nn.Module) -> ProcessGroup | None:
    """Return the ranks that have to run the forward of an FSDP1 or FSDP2 model together; None for any other model."""
    groups = [module.process_group for module in flat_sharded(model)]
    meshes = [group.mesh_info for group in _sharding_groups(model)]
    groups += [mesh.shard_process_group for mesh in meshes if hasattr(mesh, "shard_process_group")]
    return max(groups, key=lambda group: group.size(), default=None)


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
