"""Augmentation and resizing: what may become of an image, and nothing else."""

import torch

from stages.common import images


def test_augmentation_only_shifts_and_mirrors():
    pixels = torch.arange(2 * 64, dtype=torch.uint8).view(2, 1, 8, 8).repeat(50, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    still = images.Augmentation.draw(len(pixels), flip=False, translate=0, generator=generator)
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
    drawn = images.Augmentation.draw(len(pixels), flip=True, translate=1, generator=generator)
    augmented = drawn.apply(pixels, slice(None))
    parts = [slice(0, 33), slice(33, 34), slice(34, 100)]
    assert torch.equal(torch.cat([drawn.apply(pixels[part], part) for part in parts]), augmented)
    seen = {(i % 2, image.numpy().tobytes()) for i, image in enumerate(augmented)}
    assert seen <= allowed and len(seen) > 20


def test_resized_images_keep_their_range_and_mean():
    pixels = torch.rand(4, 3, 32, 32)
    small = images.resize(pixels, 24)
    assert small.shape == (4, 3, 24, 24) and small.min() >= 0 and small.max() <= 1
    assert abs(float(small.mean() - pixels.mean())) < 0.01
    assert torch.equal(images.resize(pixels, 32), pixels)
