"""What was read of a map is given back without loss, and many images are taken onto the disk."""

import numpy as np
import pytest
import torch

from stages.common import arrays, artifacts, images
from stages.common.images import ImageSet, maps


@pytest.fixture
def written(tmp_path):
    """A prepared set of 60 images, and its pixels in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), np.uint8)
    labels = np.arange(60) // 30
    artifacts.write_arrays(tmp_path / "a.npz", images=pixels, labels=labels, classes=np.array(["a", "b"]))
    return images.read(tmp_path / "a.npz"), torch.from_numpy(pixels)


def test_images_that_were_given_back_are_read_again(written):
    image_set, pixels = written
    for part in (image_set.images, image_set.images[7:20], image_set.images[3], image_set.images[:, 1:]):
        images.give_back(part)
        assert torch.equal(image_set.images, pixels)
    for batch in images.batches(image_set.images, device=torch.device("cpu"), description="test"):
        assert torch.equal(batch.x, pixels[batch.part].float() / 255)


def test_what_was_written_to_a_set_is_kept(written):
    """It is in memory alone: giving it back would lose it."""
    image_set, pixels = written
    image_set.images[30].fill_(7)
    pixels = pixels.clone()
    pixels[30] = 7
    for part in (image_set.images, image_set.images[28:40], image_set.take(torch.arange(60)).images):
        images.give_back(part)
        assert torch.equal(part, pixels[28:40] if len(part) < 60 else pixels)


def test_tensors_that_are_no_map_are_left_alone():
    pixels = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2)
    images.give_back(pixels)
    assert pixels.flatten().tolist() == list(range(24))


@pytest.mark.parametrize("large", [0, 2**28])
def test_images_are_taken_in_any_order_in_memory_or_on_disk(written, monkeypatch, large):
    monkeypatch.setattr(arrays, "LARGE", large)
    image_set, pixels = written
    chosen = torch.from_numpy(np.random.default_rng(1).integers(0, 60, 80))
    for source in (image_set, ImageSet(pixels, image_set.labels, image_set.classes)):
        taken = source.take(chosen)
        assert torch.equal(taken.images, pixels[chosen]) and torch.equal(taken.labels, image_set.labels[chosen])
        again = taken.take(chosen % 60)
        assert torch.equal(again.images, pixels[chosen][chosen % 60])
        images.give_back(taken.images)
        assert torch.equal(taken.images, pixels[chosen])
        assert len(source.take(chosen[:0])) == 0
    assert isinstance(maps._mapped(taken.images), np.memmap) == (large == 0)


def test_neighbours_on_a_map_are_not_copied(written):
    image_set, pixels = written
    part = image_set.take(torch.arange(10, 30))
    assert part.images.data_ptr() == image_set.images[10].data_ptr()
    assert torch.equal(part.images, pixels[10:30])
    assert ImageSet(pixels, image_set.labels, []).take(torch.arange(10, 30)).images.data_ptr() != pixels[10].data_ptr()


@pytest.mark.parametrize(
    ("side", "size"), [(8, 500), (28, 500), (32, 500), (33, 470), (64, 125), (224, 10), (512, 1), (1000, 1)]
)
def test_batches_of_large_images_are_small(side, size):
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(501, -1, -1, -1)
    assert images.batch_size(pixels) == size
    batch = next(images.batches(pixels, device=torch.device("cpu"), description="test"))
    assert len(batch.x) == size and batch.part == slice(0, size)
