import pytest
import torch

from syncnorm.data.augment import apply, augment, draw


def images(count=24, side=16):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def one_by_one(x, drawn):
    """Return what the docstring says, pixel by pixel: out[i, j] = x[i - down, j - right], then mirrored."""
    out = torch.zeros_like(x)
    count, _, height, width = x.shape
    for n in range(count):
        for i in range(height):
            for j in range(width):
                from_i, from_j = i - int(drawn.down[n]), j - int(drawn.right[n])
                if 0 <= from_i < height and 0 <= from_j < width:
                    out[n, :, i, width - 1 - j if drawn.mirror[n] else j] = x[n, :, from_i, from_j]
    return out


@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
def test_apply_is_the_pixelwise_definition(kind):
    x = images()
    drawn = draw(kind, len(x), 16, seed=0, epoch=0, step=0)
    assert torch.equal(apply(x, drawn), one_by_one(x, drawn))


def test_shifts_reach_an_eighth_of_the_side_and_no_further():
    drawn = draw("shift", 2000, 32, seed=0, epoch=0, step=0)
    for shift in (drawn.down, drawn.right):
        assert sorted(set(shift.tolist())) == list(range(-4, 5))
    assert not drawn.mirror.any()


def test_flip_mirrors_about_half_of_the_images():
    assert 0.45 < draw("shift_flip", 2000, 32, seed=0, epoch=0, step=0).mirror.float().mean() < 0.55


def test_none_changes_nothing():
    x = images()
    assert augment(x, "none", seed=0, epoch=0, step=0) is x


@pytest.mark.parametrize("kind", ["shift", "shift_flip"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_real_rank_gets_what_its_virtual_twin_gets(kind, ranks):
    x = images(count=24)
    together = augment(x, kind, seed=5, epoch=2, step=7)
    for rank in range(ranks):
        alone = augment(x[rank::ranks], kind, seed=5, epoch=2, step=7, rank=rank, ranks=ranks)
        assert torch.equal(alone, together[rank::ranks])


def test_seed_epoch_and_step_each_draw_anew():
    x = images()
    results = [augment(x, "shift", *where) for where in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]]
    assert all(not torch.equal(a, b) for i, a in enumerate(results) for b in results[:i])
