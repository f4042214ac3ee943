import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from syncnorm.data import partition, rank_batches
from syncnorm.errors import UserError


def shards(count=103, ranks=4):
    return partition(torch.arange(count) % 5, "sorted", ranks, seed=0, percent=60)


def test_a_rank_takes_its_own_samples_each_at_most_once():
    held = shards()
    batches = rank_batches(held, per_device_batch=8, seed=0, epoch=0)
    assert batches.shape == (25 // 8, 8, 4)  # the smallest shard of 103 samples over 4 ranks has 25
    for rank, shard in enumerate(held):
        taken = batches[:, :, rank].flatten().tolist()
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(shard.tolist())


def test_sample_i_of_the_global_batch_sits_on_rank_i_mod_ranks():
    held = shards()
    batches = rank_batches(held, per_device_batch=8, seed=0, epoch=0)
    for global_batch in batches.flatten(1):
        for place, index in enumerate(global_batch.tolist()):
            assert index in held[place % 4]


def test_one_epoch_uses_every_full_batch_of_an_even_split():
    held = shards(count=64)
    assert sorted(rank_batches(held, 8, seed=0, epoch=0).flatten().tolist()) == list(range(64))


def test_the_order_changes_with_epoch_seed_and_rank_and_with_nothing_else():
    held = [torch.arange(32), torch.arange(32)]
    base = rank_batches(held, 4, seed=0, epoch=0)
    assert torch.equal(base, rank_batches(held, 4, seed=0, epoch=0))
    assert not torch.equal(base, rank_batches(held, 4, seed=0, epoch=1))
    assert not torch.equal(base, rank_batches(held, 4, seed=1, epoch=0))
    assert not torch.equal(base[:, :, 0], base[:, :, 1])


def test_a_ranks_order_does_not_depend_on_the_number_of_ranks():
    held = shards()
    assert torch.equal(rank_batches(held, 5, 0, 2)[:, :, 1], rank_batches(held[:2], 5, 0, 2)[:, :, 1])


def test_a_shard_smaller_than_a_batch_is_a_mistake_that_names_both():
    with pytest.raises(UserError, match=r"rank 1 of 2 holds 3 training samples.*batch of 4.*per_device_batch"):
        rank_batches([torch.arange(9), torch.arange(3)], 4, seed=0, epoch=0)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_torchs_sampler_deals_an_epochs_order_in_the_same_way(ranks):
    """`DistributedSampler` gives rank r each R-th of the order, and a loader cuts it into batches."""
    batches = rank_batches(shards(ranks=ranks), per_device_batch=8, seed=0, epoch=1)
    order = batches.flatten().tolist()
    for rank in range(ranks):
        sampler = DistributedSampler(order, num_replicas=ranks, rank=rank, shuffle=False)
        loader = DataLoader(order, batch_size=8, sampler=sampler)
        assert [batch.tolist() for batch in loader] == batches[:, :, rank].tolist()
