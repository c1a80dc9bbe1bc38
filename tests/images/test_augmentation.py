"""Augmentation and resizing: what may become of an image, and nothing else."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.common import images


def draw(order, epoch=1, *, flip, translate=0, seed=0, noise=0):
    """For the images numbered `order`; `noise` seeds the epoch's own randomness."""
    generator = torch.Generator().manual_seed(noise)
    return images.Augmentation.draw(order, epoch, flip=flip, translate=translate, seed=seed, generator=generator)


def test_augmentation_only_shifts_and_mirrors():
    pixels = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8).repeat(50, 1, 1, 1)
    order = torch.arange(len(pixels))
    still = draw(order, flip=False)
    assert torch.equal(still.apply(pixels, slice(None)), pixels)
    padded = torch.nn.functional.pad(pixels[:2].float(), (1,) * 4, mode="reflect").to(torch.uint8)
    allowed = {
        (i, shifted.flip(2).numpy().tobytes() if mirror else shifted.numpy().tobytes())
        for i in range(2)
        for top in range(3)
        for left in range(3)
        for mirror in (False, True)
        for shifted in [padded[i, :, top : top + 8, left : left + 8].contiguous()]
    }
    drawn = draw(order, flip=True, translate=1)
    augmented = drawn.apply(pixels, slice(None))
    parts = [slice(0, 33), slice(33, 34), slice(34, 100)]
    assert torch.equal(torch.cat([drawn.apply(pixels[part], part) for part in parts]), augmented)
    seen = {(i % 2, image.numpy().tobytes()) for i, image in enumerate(augmented)}
    assert seen <= allowed and len(seen) > 20


def mirrored(order, epoch, **given):
    """Which images, by their numbers, an epoch shows mirrored: what becomes of pixels, not what was noted."""
    pixels = torch.tensor([0, 255], dtype=torch.uint8).repeat(len(order), 1, 1, 1)
    shown = draw(order, epoch, **given).apply(pixels, slice(None))
    found = torch.empty(len(order), dtype=torch.bool)
    found[order] = shown[:, 0, 0, 0] == 255
    return found


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 200), epoch=st.integers(1, 100), seed=st.integers(0, 2**32 - 1), shuffle=st.integers(0, 2**31)
)
def test_two_epochs_in_a_row_show_both_sides_of_each_image(count, epoch, seed, shuffle):
    """Whatever the order of each epoch, and whatever else it draws."""
    orders = [torch.randperm(count, generator=torch.Generator().manual_seed(shuffle + i)) for i in range(3)]
    first, second, third = (
        mirrored(order, epoch + i, flip=True, seed=seed, noise=shuffle + i) for i, order in enumerate(orders)
    )
    assert torch.equal(second, ~first) and torch.equal(third, first)
    assert torch.equal(mirrored(torch.arange(count), epoch, flip=True, seed=seed), first)
    assert not mirrored(orders[0], epoch, flip=False, seed=seed).any()


def test_each_epoch_mirrors_about_half_of_the_images_and_the_seed_says_which():
    order, seeds = torch.arange(4000), range(3)
    found = [mirrored(order, epoch, flip=True, seed=seed) for seed in seeds for epoch in (1, 2)]
    assert all(abs(float(each.double().mean()) - 0.5) < 0.04 for each in found)  # five standard deviations
    assert all(
        abs(float((one ^ other).double().mean()) - 0.5) < 0.04
        for one, other in zip(found[::2], found[2::2], strict=False)
    )
    assert torch.equal(mirrored(order, 1, flip=True, seed=2), found[4])


def test_mirroring_leaves_the_shifts_as_they_are():
    order = torch.randperm(50)
    one, other = (draw(order, flip=flip, translate=2) for flip in (False, True))
    assert torch.equal(one.shifts, other.shifts) and one.mirrored is None


def test_resized_images_keep_their_range_and_mean():
    pixels = torch.rand(4, 3, 32, 32)
    small = images.resize(pixels, 24)
    assert small.shape == (4, 3, 24, 24) and small.min() >= 0 and small.max() <= 1
    assert abs(float(small.mean() - pixels.mean())) < 0.01
    assert torch.equal(images.resize(pixels, 32), pixels)
