"""What only a CUDA device can show: native kernels there, autocast, and that nothing waits for the device."""

import pytest
import torch
from torch import nn

from syncnorm import GhostBatchNorm, HybridBatchNorm, ReferenceBatchNorm, SyncBatchNorm

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("fmt", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-4), (torch.float16, 2e-2)]
)
def test_equals_batch_norm(fmt: torch.memory_format, dtype: torch.dtype, tolerance: float) -> None:
    x = (torch.randn(8, 16, 7, 5, device="cuda") * 2 + 1).to(dtype).contiguous(memory_format=fmt).requires_grad_()
    ours, plain = SyncBatchNorm(16).cuda(), nn.BatchNorm2d(16).cuda()
    if dtype == torch.float64:
        ours, plain = ours.double(), plain.double()
    probe = torch.randn_like(x)
    y, expected = ours(x), plain(x)
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(y, expected, **close)
    for found, right in zip(
        torch.autograd.grad(y, (x, *ours.parameters()), probe),
        torch.autograd.grad(expected, (x, *plain.parameters()), probe),
        strict=True,
    ):
        torch.testing.assert_close(found, right, **close)
    torch.testing.assert_close(ours.running_var, plain.running_var, rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=fmt)


def test_nothing_waits_for_the_device() -> None:
    layers = [
        SyncBatchNorm(8, skip_nonfinite=True).cuda(),
        GhostBatchNorm(8, virtual_ranks=4, buffers="pooled").cuda(),
        ReferenceBatchNorm(8).cuda(),
        HybridBatchNorm(8).cuda(),
    ]
    x = torch.randn(8, 8, 6, 6, device="cuda", requires_grad=True)
    for layer in layers:
        layer(x).sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for layer in layers:
            layer(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_autocast_keeps_float32_statistics() -> None:
    conv, layer = nn.Conv2d(3, 8, 3).cuda(), SyncBatchNorm(8).cuda()
    with torch.autocast("cuda", dtype=torch.float16):
        y = layer(conv(torch.randn(4, 3, 8, 8, device="cuda")))
    assert y.dtype == torch.float16
    assert layer.running_mean.dtype == torch.float32
