"""The figure of one layer at work shows what the layers compute: its arithmetic in JavaScript beside PyTorch's."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import syncnorm

SCRIPT = Path(__file__).parents[1] / "docs/site/layer.js"
CASES = [(norm, ranks, skew) for norm in ("bn", "sync_bn", "gn") for ranks in (1, 2, 4, 8) for skew in (0, 50, 100)]
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    if NODE is None:
        pytest.skip("node is not installed")
    cases = json.dumps(CASES)
    code = f"const f = require({json.dumps(str(SCRIPT))}); const all = {{}};"
    code += f"for (const c of {cases}) all[c] = f.layer(...c); console.log(JSON.stringify({{...f, all}}))"
    done = subprocess.run([NODE, "-e", code], check=True, capture_output=True, text=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tensor(parts: Any) -> Tensor:
    """Return values by device, sample and position as a batch of shape (N, 1, L)."""
    return torch.tensor([sample for share in parts for sample in share], dtype=torch.float64)[:, None]


@pytest.mark.parametrize(("norm", "ranks", "skew"), CASES)
def test_it_computes_what_the_layers_compute(shown: dict[str, Any], norm: str, ranks: int, skew: int) -> None:
    figure = shown["all"][f"{norm},{ranks},{skew}"]
    x = tensor(figure["x"]).requires_grad_()
    layers = [_layer(norm, shown) for _ in range(ranks if norm == "bn" else 1)]
    y = torch.cat([layer(part) for layer, part in zip(layers, x.chunk(len(layers)), strict=True)])
    y.backward(tensor(figure["upstream"]))
    assert x.grad is not None
    for name, found in (("y", y.detach()), ("gradient", x.grad)):
        torch.testing.assert_close(tensor(figure[name]), found, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(sum(map(tensor, figure["paths"])), x.grad, atol=1e-12, rtol=1e-12)
    for layer, running in zip(layers, figure["running"], strict=norm != "gn"):
        assert running["mean"] == pytest.approx(float(layer.running_mean), abs=1e-12)
        assert running["variance"] == pytest.approx(float(layer.running_var), abs=1e-12)
    evaluated = layers[0].eval()(x.detach())
    torch.testing.assert_close(tensor(figure["evaluated"]), evaluated, atol=1e-12, rtol=1e-12)


def _layer(norm: str, shown: dict[str, Any]) -> Any:
    layer: Any = syncnorm.make_norm(norm, 1, ndim=1).double()
    assert (layer.eps, getattr(layer, "momentum", 0.1)) == (shown["EPS"], shown["MOMENTUM"])
    torch.nn.init.constant_(layer.weight, shown["WEIGHT"])
    torch.nn.init.constant_(layer.bias, shown["BIAS"])
    return layer


@pytest.mark.parametrize(("ranks", "skew"), [(ranks, skew) for ranks in (1, 2, 4, 8) for skew in (0, 50, 100)])
def test_every_device_has_as_many_samples_and_the_skew_sorts_them(
    shown: dict[str, Any], ranks: int, skew: int
) -> None:
    shares = shown["all"][f"bn,{ranks},{skew}"]["shares"]
    assert [len(share) for share in shares] == [8 // ranks] * ranks
    assert sorted(one["index"] for share in shares for one in share) == list(range(8))
    ones = [sum(one["label"] for one in share) / len(share) for share in shares]
    if skew == 0 and ranks < 8:
        assert ones == [0.5] * ranks
    if skew == 100:
        assert ones == sorted(ones)
        assert ranks == 1 or set(ones) == {0.0, 1.0}
