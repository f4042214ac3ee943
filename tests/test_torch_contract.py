"""What syncnorm expects of the private parts of torch: a release that changes one fails here first."""

import contextlib
import subprocess
import sys
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import ok, run_ranks
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from syncnorm import _torch


def test_no_other_file_uses_them() -> None:
    """What is spelled `torch._...` stands in this one file."""
    root = Path(_torch.__file__).parent
    private = ("torch._", "_get_default_store", "_functional_collectives", "_orig_mod")
    users = [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*.py"))
        if path.name != "_torch.py" and any(word in path.read_text() for word in private)
    ]
    assert users == []


def test_a_recomputation_knows_that_it_is_in_a_backward() -> None:
    said = []

    def part(x: Tensor) -> Tensor:
        said.append(_torch.in_backward())
        return x.sin().cos()

    y = checkpoint(part, torch.ones(2, requires_grad=True), use_reentrant=False)
    assert said == [False]
    y.sum().backward()
    assert said == [False, True]
    assert not _torch.in_backward()


def test_a_transform_is_seen() -> None:
    said: list[bool] = []

    def square(x: Tensor) -> Tensor:
        said.append(_torch.transforming())
        return (x * x).sum()

    x = torch.ones(2, 3)
    for run in (torch.vmap(square), torch.func.grad(square), lambda x: torch.func.jvp(square, (x,), (x,)), square):
        run(x)
    assert said == [True, True, True, False]


def test_ranks_share_a_store() -> None:
    def meet(rank: int) -> int:
        store = _torch.key_value_store()
        store.set(f"contract/{rank}", str(rank))
        store.wait([f"contract/{peer}" for peer in range(2)])
        assert store.check(["contract/0"])
        assert store.get(f"contract/{1 - rank}") == str(1 - rank).encode()
        return int(store.add("contract/count", 1))

    assert sorted(ok(run_ranks(2, meet))) == [1, 2]


def test_a_group_says_after_how_long_its_collectives_fail(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=7))
    try:
        short = dist.new_group([0], timeout=timedelta(seconds=3))
        assert _torch.group_timeout(dist.group.WORLD, torch.device("cpu")) == 7
        assert _torch.group_timeout(short, torch.device("cpu")) == 3
    finally:
        dist.destroy_process_group()


def test_a_forward_of_ddp_knows_of_join(tmp_path: Path) -> None:
    class Asks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            said.append(_torch.joining_unevenly())
            return super().forward(input)

    said: list[bool] = []
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Asks(2, 2))
        model(torch.zeros(1, 2))
        for options in ({}, {"throw_on_early_termination": True}, {"enable": False}):
            with contextlib.suppress(RuntimeError), model.join(**options):
                model(torch.zeros(1, 2))
        with model.join():
            model(torch.zeros(1, 2))
        model(torch.zeros(1, 2))  # torch leaves it on
        _torch.leave_join(model)
        model(torch.zeros(1, 2))
        del model  # freed after its group, it was seen to wait for gloo's threads for ever
    finally:
        dist.destroy_process_group()
    assert said == [False, True, False, False, True, True, False]
    assert not _torch.joining_unevenly()


PAUSE = 0.02


def after_a_while(state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Exchange gradients like a rank whose peers are late."""
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    threading.Timer(PAUSE, lambda: future.set_result(bucket.buffer())).start()
    return future


def test_ddp_times_its_wait_for_gradients(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
        assert _torch.seconds_for_gradients(model) == 0
        _torch.time_gradients(model)
        model.register_comm_hook(None, after_a_while)
        began = time.perf_counter()
        for _ in range(20):  # the first ten are timed at any rate
            model(torch.ones(1, 2)).sum().backward()
        took = time.perf_counter() - began
        assert 20 * PAUSE * 0.8 < _torch.seconds_for_gradients(model) < took
        del model
    finally:
        dist.destroy_process_group()


def test_fsdp2_sets_parameters_where_it_is_told(tmp_path: Path) -> None:
    class Asks(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            whole.append(type(self.weight) is nn.Parameter)
            return super().forward(input)

    whole: list[bool] = []
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        assert _torch.fully_sharded(model) == []
        from torch.distributed.fsdp import fully_shard  # seconds, for this test alone

        fully_shard(model, mesh=dist.init_device_mesh("cpu", (1,)))
        for _ in range(2):  # before the first forward, and after it, when hooks of state_dict() are there
            old, new = model[1], Asks(2, 2)
            new.weight, new.bias = old.weight, old.bias
            model[1] = new
            _torch.move_sharded(model, {old: new})
            places = [(module, name) for module, name, _ in _torch.sharded_parameters(model)]
            assert places == [(layer, name) for layer in model for name in ("weight", "bias")]
            model(torch.zeros(1, 2))
            shards = {name: value for name, value in model.state_dict().items() if type(value) is not Tensor}
            assert len(shards) == 4
        assert _torch.fully_sharded(model) == [model]
        assert _torch.flat_sharded(model) == []
        group = _torch.sharding_group(model)
        assert group is not None
        assert group.size() == 1
        assert _torch.sharding_group(new) is None
    finally:
        dist.destroy_process_group()
    assert whole == [True, True]


def test_an_assertion_is_recorded_by_fx() -> None:
    class Asserts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            _torch.assert_recorded(x.dim() == 2, "two dimensions")
            return x

    traced = fx.symbolic_trace(Asserts())
    with pytest.raises(AssertionError, match="two dimensions"):
        traced(torch.zeros(3))
    torch.jit.script(Asserts())(torch.zeros(2, 2))


def test_a_beta_distribution_is_drawn_as_torch_draws_it() -> None:
    for alpha in (0.1, 2.0):
        torch.manual_seed(0)
        expected = torch.distributions.Beta(alpha, alpha).sample((7, 1))
        torch.manual_seed(0)
        assert torch.equal(_torch.beta_samples(alpha, 7, 1), expected)


def test_a_compiled_model_holds_the_one_it_was_made_of() -> None:
    model = nn.Linear(2, 2)
    assert _torch.uncompiled_module(model) is model
    assert _torch.uncompiled_module(torch.compile(model)) is model


def test_torch_alone_does_not_load_the_compiler() -> None:
    program = (
        "import torch; from syncnorm._torch import compiler_is_loaded as loaded; before = loaded(); "
        "import torch._dynamo; print(before, loaded())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("shared_weight", [True, False])
def test_code_under_vmap_reaches_the_whole_batch(shared_weight: bool) -> None:
    rows, samples = 3, 5
    x = torch.randn(rows, samples, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4 if shared_weight else (rows, 4), dtype=torch.float64, requires_grad=True)
    shapes = []

    def call(x: Tensor, weight: Tensor, nothing: None) -> Tensor:
        shapes.append((x.shape, weight.shape, nothing))
        return (x * weight).sin()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = torch.vmap(
            lambda x, weight: _torch.outside_vmap(call, x, weight, None), (0, None if shared_weight else 0)
        )(x, weight)
    assert shapes == [((samples, rows, 4), (rows, 4), None)]
    expected = (x * (weight if shared_weight else weight.unsqueeze(1))).sin()
    torch.testing.assert_close(found, expected)
    for tensor in (x, weight):
        grads = [torch.autograd.grad(y.square().sum(), tensor, retain_graph=True)[0] for y in (found, expected)]
        torch.testing.assert_close(*grads)


@pytest.mark.skipif(not _torch.COMPILES_COLLECTIVES, reason="torch before 2.11")
def test_a_sum_in_a_graph_sums_over_the_ranks() -> None:
    def add(rank: int) -> float:
        summed = _torch.sum_in_graph(torch.tensor([rank + 1.0]), dist.group.WORLD)
        return float(F.relu(summed))

    assert ok(run_ranks(2, add)) == [3.0, 3.0]
