"""Which tools find a converted batch norm by its class, its attributes or its names: what docs/tools.md says of each.

A tool that is not installed is skipped; the page's table has a row for each test.
"""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import ok, run_ranks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel, update_bn

import syncnorm
from syncnorm import convert, make_norm, norm_names

PAGE = Path(__file__).parents[2] / "docs" / "tools.md"
C = 4
OPTIONS: dict[str, dict[str, Any]] = {
    "ghost_bn": {"virtual_ranks": 2},
    "domain_bn": {"domains": 2},
    "eval_norm": {"batch": 2},
}
X = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def network(name: str = "sync_bn") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, C, 3), nn.BatchNorm2d(C), nn.ReLU(), nn.Conv2d(C, 2, 1))
    return model if name == "bn" else convert(model, name, **OPTIONS.get(name, {}))


def tool(module: str, name: str) -> Any:
    """Return what a tool's module has under a name; skip where it cannot be imported."""
    return getattr(pytest.importorskip(module, exc_type=ImportError), name)


def swa() -> str:
    model = network()
    update_bn([X], model)
    return "yes" if not torch.equal(model[1].running_mean, torch.zeros(C)) else "no"


def averages() -> str:
    model = network()
    average = AveragedModel(model, use_buffers=True)
    model.train()(X)
    average.update_parameters(model)
    return "yes" if torch.equal(average.module[1].running_mean, model[1].running_mean) else "no"


def timm_ema() -> str:
    average = tool("timm.utils", "ModelEmaV3")(network(), decay=0.0)
    model = network()
    model.train()(X)
    average.update(model)
    return "yes" if torch.equal(average.module[1].running_mean, model[1].running_mean) else "no"


def fusion() -> str:
    model = network()
    model.train()(X)
    fused = fuse_conv_bn_eval(model.eval()[0], model[1])
    torch.testing.assert_close(fused(X), model[1](model[0](X)))
    return "yes"


def fx_fusion() -> str:
    from torch.fx.experimental.optimization import fuse

    model = network().eval()
    fused = fuse(model)
    torch.testing.assert_close(fused(X), model(X))
    return "no" if any(type(layer) is syncnorm.SyncBatchNorm for layer in fused.modules()) else "yes"


def quantization() -> str:
    from torch.ao.quantization import fuse_modules

    assert len(list(fuse_modules(syncnorm.revert(network()).eval(), [["0", "1"]])[0].children())) == 0
    with pytest.raises(AssertionError, match="did not find fuser method"):
        fuse_modules(network().eval(), [["0", "1"]])
    return "no"


def functorch() -> str:
    torch.func.replace_all_batch_norm_modules_(model := network())
    torch.testing.assert_close(model.eval()(X), network("bn").train()(X))
    torch.func.replace_all_batch_norm_modules_(frozen := network("frozen_bn"))
    with pytest.raises(ValueError, match="has no running_mean"):
        frozen(X)
    return "yes"


def replaced_by_torchs(replace: Callable[[nn.Module], nn.Module]) -> str:
    for name in ("sync_bn", "ghost_bn", "frozen_bn"):
        assert type(replace(network(name))[1]) is nn.SyncBatchNorm
    assert type(replace(network("gn"))[1]) is type(network("gn")[1])
    return "yes, and replaces it"


def fsdp() -> str:
    from torch.distributed.fsdp import MixedPrecision

    return "yes" if isinstance(network()[1], MixedPrecision()._module_classes_to_ignore) else "no"


def finetuning() -> str:
    from lightning.pytorch.callbacks import BaseFinetuning

    for name in ("sync_bn", "ghost_bn", "frozen_bn"):
        model = network(name).train()
        BaseFinetuning.freeze(model, train_bn=False)
        before = copy.deepcopy(model.state_dict())
        model(X)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return "yes"


def lightnings_switch() -> str:
    from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm

    return replaced_by_torchs(TorchSyncBatchNorm().apply)


def timm_freezing() -> str:
    for freeze in (tool("timm.layers", "freeze_batch_norm_2d"), tool("timm.utils", "freeze")):
        assert type(network("bn")[1]) is nn.BatchNorm2d
        model = network()
        freeze(model)
        assert type(model[1]) is syncnorm.SyncBatchNorm
        before = model[1].running_mean.clone()
        model.train()(X)
        assert not torch.equal(model[1].running_mean, before)
    return "no"


def timm_distribution() -> str:
    distribute = tool("timm.utils", "distribute_bn")

    def work(rank: int) -> Tensor:
        model = network("ghost_bn")
        model.train()(X + rank)
        distribute(model, 2, reduce=True)
        return model[1].running_mean

    first, second = ok(run_ranks(2, work))
    return "yes" if torch.equal(first, second) else "no"


def timm_weight_decay() -> str:
    groups = tool("timm.optim", "param_groups_weight_decay")
    for name in norm_names():
        model = network(name)
        without = {id(parameter) for parameter in groups(model, 0.1)[0]["params"]}
        assert all(id(parameter) in without for parameter in model[1].parameters()), name
    return "yes"


def precise_bn() -> str:
    module = pytest.importorskip("fvcore.nn.precise_bn", exc_type=ImportError)
    assert len(module.get_bn_modules(network("bn").train())) == 1
    found = len(module.get_bn_modules(network().train()))
    ours, theirs = network().train(), network().train()
    batches = [X, X[:3] + 1]
    before, module.BN_MODULE_TYPES = module.BN_MODULE_TYPES, (_BatchNorm,)  # what the page says to write
    try:
        module.update_bn_stats(theirs, batches, 2)
    finally:
        module.BN_MODULE_TYPES = before
    syncnorm.recalibrate(ours, batches)
    values = sum(batch.shape[0] * 9 for batch in batches)
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
    torch.testing.assert_close(ours[1].running_var * (values - 1) / values, theirs[1].running_var)
    return "yes" if found else "no"


def flops() -> str:
    count = tool("fvcore.nn", "FlopCountAnalysis")
    totals = {
        name: count(network(name).eval(), X).unsupported_ops_warnings(False).total() for name in ("bn", "sync_bn")
    }
    return "yes" if totals["bn"] == totals["sync_bn"] else "no"


TOOLS: dict[str, Callable[[], str]] = {
    "`torch.optim.swa_utils.update_bn`": swa,
    "`torch.optim.swa_utils.AveragedModel`": averages,
    "`torch.nn.utils.fusion.fuse_conv_bn_eval`": fusion,
    "`torch.fx.experimental.optimization.fuse`": fx_fusion,
    "`torch.ao.quantization.fuse_modules`": quantization,
    "`torch.func.replace_all_batch_norm_modules_`": functorch,
    "`torch.nn.SyncBatchNorm.convert_sync_batchnorm`": lambda: replaced_by_torchs(
        nn.SyncBatchNorm.convert_sync_batchnorm
    ),
    "FSDP's `MixedPrecision`": fsdp,
    "Lightning's `BaseFinetuning.freeze(train_bn=False)`": finetuning,
    "Lightning's `Trainer(sync_batchnorm=True)`": lightnings_switch,
    "timm's `convert_sync_batchnorm`": lambda: replaced_by_torchs(tool("timm.layers", "convert_sync_batchnorm")),
    "timm's `freeze_batch_norm_2d`, `freeze`": timm_freezing,
    "timm's `distribute_bn`": timm_distribution,
    "timm's `ModelEmaV3`": timm_ema,
    "timm's `param_groups_weight_decay`": timm_weight_decay,
    "fvcore's `update_bn_stats`": precise_bn,
    "fvcore's `FlopCountAnalysis`": flops,
}


def rows() -> dict[str, str]:
    """Return what the page says of each tool: whether it finds a converted batch norm."""
    cells = [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in PAGE.read_text().splitlines()]
    return {row[0]: row[2] for row in cells if len(row) == 4 and not re.fullmatch(r"-+|tool", row[0])}


@pytest.mark.parametrize("name", TOOLS)
def test_the_page_says_what_the_tool_does(name: str) -> None:
    assert TOOLS[name]() == rows()[name]


def test_every_row_of_the_page_is_tried() -> None:
    assert set(rows()) == set(TOOLS)


def test_what_a_layer_inherits_from() -> None:
    """The rule at the top of the page."""
    for name in norm_names():
        layer = make_norm(name, C, **OPTIONS.get(name, {}))
        if name != "bn":
            assert not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm)
    assert all(isinstance(make_norm(name, C), nn.GroupNorm) for name in ("gn", "ln", "in"))
    assert all(isinstance(make_norm(name, C), _BatchNorm) for name in ("sync_bn", "frozen_bn", "hybrid_bn", "brn"))
