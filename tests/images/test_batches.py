"""Batches of a set: each with a randomness of its own, and what was made of all of them in order."""

import sys

import pytest
import torch

from stages.common import images
from stages.common.images import ImageSet

CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 16)


def some(count):
    pixels = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(pixels, torch.arange(count), [str(number) for number in range(count)])


def test_what_is_made_of_each_batch_comes_in_the_order_of_the_set(small):
    shown = some(50)
    found = images.each_batch(
        lambda batch: (batch.number, batch.part, batch.y.tolist(), batch.x),
        shown.images,
        shown.labels,
        device=CPU,
        description="test",
    )
    assert [number for number, *_ in found] == [0, 1, 2, 3]
    assert [part for _, part, *_ in found] == [slice(0, 16), slice(16, 32), slice(32, 48), slice(48, 50)]
    assert [label for _, _, labels, _ in found for label in labels] == list(range(50))
    assert torch.equal(torch.cat([x for *_, x in found]), images.to_float(shown.images))
    assert images.each_batch(len, shown.images[:0], device=CPU, description="test") == []


def test_what_was_made_of_each_batch_is_joined_and_nothing_where_there_is_no_image(small):
    shown = some(50)

    def joined(function, count, dtype, *rows):
        few = shown.take(torch.arange(count))
        found = images.each_batch(function, few.images, few.labels, device=CPU, description="test")
        return images.joined(found, dtype, *rows)

    assert torch.equal(joined(lambda batch: batch.y, 50, torch.int64), shown.labels)
    assert torch.equal(joined(lambda batch: torch.stack([batch.y, -batch.y]), 50, torch.int64, 2)[1], -shown.labels)
    for rows in ((), (3,), (3, 2)):
        empty = joined(lambda batch: batch.y, 0, torch.bool, *rows)
        assert empty.shape == (*rows, 0) and empty.dtype == torch.bool


def test_batches_may_have_another_size_and_no_labels(small):
    shown = some(50)
    sizes = images.each_batch(
        lambda batch: (len(batch.x), len(batch.y)), shown.images, device=CPU, description="test", size=20
    )
    assert sizes == [(20, 0), (20, 0), (10, 0)]


def test_a_batch_draws_what_it_draws_whatever_others_drew(small):
    """The first one what its seed says; a sample of one batch is attacked as if there were no batches."""
    shown = some(50)

    def draws(seed):
        return images.each_batch(
            lambda batch: torch.rand(3, generator=batch.generator(seed)), shown.images, device=CPU, description="test"
        )

    first, again, other = draws(5), draws(5), draws(6)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert torch.equal(first[0], torch.rand(3, generator=torch.Generator().manual_seed(5)))
    every = torch.stack([*first, *other])
    assert len(every.unique(dim=0)) == len(every)


def test_a_feed_has_the_images_and_labels_that_are_asked_for():
    shown = some(50)
    feed, chosen = images.Feed(shown, CPU), torch.tensor([7, 3, 49, 7])
    pixels, labels = feed.take(chosen)
    assert len(feed) == 50 and torch.equal(pixels, shown.images[chosen]) and torch.equal(labels, chosen)
