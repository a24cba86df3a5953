"""The batch source: every sample once, in an order that only seed and epoch decide."""

from typing import Any

import pytest
import torch
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor

from datamodules import BatchSource

N = 23
INDICES = torch.arange(N)


def epoch(source: BatchSource, number: int = 0) -> list[int]:
    """The indices of one epoch in their order."""
    source.sampler.set_epoch(number)
    return [int(i) for (indices,) in source for i in indices]


def shuffled(seed: int = 1, **options: Any) -> BatchSource:
    return BatchSource(INDICES, batch_size=4, shuffle_seed=seed, **options)


@pytest.mark.parametrize("batch_size", [1, 4, 23, 100])
@pytest.mark.parametrize("seed", [None, 0, 2**64 - 1])
def test_an_epoch_visits_every_sample_once(seed: int | None, batch_size: int) -> None:
    source = BatchSource(INDICES, batch_size=batch_size, shuffle_seed=seed)
    assert sorted(epoch(source)) == [*range(N)]
    sizes = [len(batch[0]) for batch in source]
    assert sizes[:-1] == [batch_size] * (len(source) - 1)
    assert sum(sizes) == N


def test_tensors_stay_together() -> None:
    source = BatchSource(INDICES, 10 * INDICES, -INDICES, batch_size=4, shuffle_seed=1)
    for a, b, c in source:
        assert torch.equal(b, 10 * a)
        assert torch.equal(c, -a)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    source, other = shuffled(), shuffled()
    third = epoch(source, 3)
    torch.manual_seed(5)  # neither the global generator
    next(iter(other))  # nor what was drawn before matters
    assert epoch(other, 3) == third == epoch(source, 3)
    orders = [epoch(shuffled(seed), e) for seed in range(4) for e in range(4)]
    assert len({tuple(order) for order in orders}) == 16


def test_shuffling_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    epoch(shuffled())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_the_order_stays() -> None:
    source = BatchSource(INDICES, batch_size=4)
    assert epoch(source, 0) == epoch(source, 7) == [*range(N)]


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_drop_last_leaves_full_batches_only(seed: int | None, world_size: int) -> None:
    for rank in range(world_size):
        source = BatchSource(
            INDICES,
            batch_size=4,
            shuffle_seed=seed,
            drop_last=True,
            rank=rank,
            world_size=world_size,
        )
        assert [len(batch[0]) for batch in source] == [4] * len(source)
        assert len(source) == N // world_size // 4


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("world_size", [2, 3, 30])
def test_ranks_share_the_data_without_overlap(seed: int | None, world_size: int) -> None:
    ranks = [
        BatchSource(INDICES, batch_size=4, shuffle_seed=seed, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert sorted(i for source in ranks for i in epoch(source, 2)) == [*range(N)]
    assert [len(source) for source in ranks] == [len([*source]) for source in ranks]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_ranks_train_on_equally_many_batches(world_size: int) -> None:
    ranks = [shuffled(drop_last=True, rank=r, world_size=world_size) for r in range(world_size)]
    assert len({len([*source]) for source in ranks}) == 1
    seen = [i for source in ranks for i in epoch(source)]
    assert len(seen) == len({*seen})


def test_no_samples_are_no_batches() -> None:
    source = BatchSource(torch.empty(0), batch_size=4)
    assert (len(source), [*source]) == (0, [])


def test_lightning_reads_the_batch_size() -> None:
    batch: tuple[Tensor, ...] = next(iter(BatchSource(INDICES, INDICES, batch_size=4)))
    assert extract_batch_size(batch) == 4


@pytest.mark.parametrize(
    ("lengths", "options", "complaint"),
    [
        ((3, 4), {"batch_size": 1}, r"one common length, got \[3, 4\]"),
        ((), {"batch_size": 1}, "one common length"),
        ((3,), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ((3,), {"batch_size": 4, "drop_last": True}, "batch_size must be at most 3"),
        (
            (7,),
            {"batch_size": 4, "drop_last": True, "world_size": 2},
            "batch_size must be at most 3",
        ),
    ],
)
def test_impossible_batches_are_refused(
    lengths: tuple[int, ...], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        BatchSource(*map(torch.zeros, lengths), **options)


@pytest.mark.parametrize("stop", [0, 2, 5, 6])
def test_a_restored_state_goes_on_where_it_was_taken(stop: int) -> None:
    source = shuffled()
    whole = epoch(source, 1)
    iterator = iter(source)
    seen = [int(i) for _ in range(stop) for i in next(iterator)[0]]
    other = shuffled()
    other.load_state_dict(source.state_dict())
    rest = epoch(other, 1)
    assert seen + rest == (whole if stop < len(source) else whole * 2)  # a new epoch begins
    assert epoch(other, 1) == whole
