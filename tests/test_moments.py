import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syncnorm import Moments

CHANNELS = 3


def parts_of(sizes: list[int], seed: int, offset: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, CHANNELS, 2, dtype=torch.float64, generator=generator) + offset for n in sizes]


@pytest.mark.parametrize("ndim", [2, 3, 4, 5])
def test_of_matches_numpy(ndim: int) -> None:
    x = torch.randn(*(4, 3, 5, 2, 3)[:ndim], dtype=torch.float64)
    dims = (0, *range(2, ndim))
    moments = Moments.of(x, dims)
    assert moments.count.shape == ()
    assert moments.count == x.numel() / 3
    torch.testing.assert_close(moments.mean.numpy(), x.numpy().mean(dims), rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(moments.var(0).numpy(), x.numpy().var(dims), rtol=1e-13, atol=0.0)
    torch.testing.assert_close(moments.var(1).numpy(), x.numpy().var(dims, ddof=1), rtol=1e-13, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.integers(0, 99), st.floats(-1e3, 1e3))
def test_any_split_and_order_gives_the_whole(sizes: list[int], seed: int, offset: float) -> None:
    parts = parts_of(sizes, seed, offset)
    whole = Moments.of(torch.cat(parts), (0, 2))
    moments = [Moments.of(part, (0, 2)) for part in parts]
    pooled = Moments.pool(moments[::-1])
    one_by_one = moments[0]
    for other in moments[1:]:
        one_by_one = one_by_one.merge(other)
    for found in (pooled, one_by_one):
        assert found.count == whole.count
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-13, atol=1e-12)
        torch.testing.assert_close(found.m2, whole.m2, rtol=1e-10, atol=1e-9)


def test_a_count_of_zero_is_neutral_whatever_it_holds() -> None:
    x = torch.randn(6, CHANNELS)
    moments = Moments.of(x, 0)
    nothing = Moments(torch.tensor(0.0), torch.full((CHANNELS,), torch.nan), torch.full((CHANNELS,), torch.nan))
    for found in (moments.merge(nothing), nothing.merge(moments), Moments.pool([nothing, moments, nothing])):
        assert found.count == 6
        torch.testing.assert_close(found.mean, moments.mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(found.m2, moments.m2, rtol=1e-6, atol=0)
    empty = Moments.of(x[:0], 0).merge(nothing)
    assert empty.count == 0
    assert empty.mean.eq(0).all()
    assert empty.var(0).eq(0).all()
    assert empty.var(1).eq(0).all()


@pytest.mark.parametrize("pieces", [1, 2, 64])
def test_float32_keeps_its_precision_far_from_zero(pieces: int) -> None:
    x = torch.randn(65_536, 8, generator=torch.Generator().manual_seed(0)) + 1e3
    reference = x.double().var(0, correction=0)
    merged = Moments.pool([Moments.of(piece, 0) for piece in x.chunk(pieces)]).var(0)
    assert ((merged - reference) / reference).abs().max() < 2e-5
    difference_of_squares = x.square().mean(0) - x.mean(0).square()
    assert ((difference_of_squares - reference) / reference).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    x = torch.randn(64, CHANNELS).to(dtype)
    moments = Moments.of(x, 0)
    assert moments.mean.dtype == moments.m2.dtype == torch.float32
    torch.testing.assert_close(moments.mean, x.float().mean(0))


def test_gradients_of_a_merge_are_those_of_the_whole() -> None:
    parts = [part.requires_grad_() for part in parts_of([2, 3, 0, 1], seed=3)]

    def variance_of_merge(*xs: torch.Tensor) -> torch.Tensor:
        return Moments.pool([Moments.of(x, (0, 2)) for x in xs]).var(1)

    assert torch.autograd.gradcheck(variance_of_merge, parts)
    assert torch.autograd.gradgradcheck(variance_of_merge, parts)


def test_mistakes_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Moments.pool([])
    with pytest.raises(ValueError, match="0 \\(biased\\) or 1 \\(unbiased\\)"):
        Moments.of(torch.randn(3, 2), 0).var(2)
