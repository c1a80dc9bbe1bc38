"""Samples are fair: evenly over the classes, evenly over the order in each, and nested."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.common import sampling

sizes = st.lists(st.integers(1, 60), min_size=1, max_size=5)


@given(sizes, st.integers(1, 300))
def test_every_class_has_its_share_and_a_smaller_sample_is_a_part_of_a_larger_one(sizes, count):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    chosen = sampling.representative(labels, count)
    assert len(chosen) == min(count, len(labels)) and chosen.tolist() == sorted(set(chosen.tolist()))
    taken = labels[chosen].bincount(minlength=len(sizes))
    for size, number in zip(sizes, taken.tolist(), strict=True):
        assert number == size or number >= int(taken.max()) - 1
    assert set(sampling.representative(labels, count // 2 or 1).tolist()) <= set(chosen.tolist())


def test_what_is_ordered_by_brightness_is_sampled_at_every_brightness():
    labels = torch.arange(10).repeat_interleave(1000)  # CIFAR-10's test set, the darkest corners of each class first
    for count in (100, 300, 500, 1000):
        ranks = sampling.representative(labels, count) % 1000
        expected = torch.linspace(0, 999, 11)
        shares = torch.histogram(ranks.float(), expected).hist / count
        assert float((shares - 0.1).abs().max()) <= 10 / count + 1e-6  # one image more or less in each class
        assert abs(float(ranks.float().mean()) - 499.5) < 50
