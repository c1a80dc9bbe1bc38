"""Corruptions: equal to formulas and other libraries, in range, repeatable, worse with severity, the same for all."""

import io
import itertools
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import fft, ndimage
from torch import nn

from stages.common import corruptions, images
from stages.common.corruptions import CORRUPTIONS, SEVERITIES
from stages.common.images import ImageSet

NOISE = {"gaussian_noise", "shot_noise"}
KINDS = st.sampled_from(sorted(CORRUPTIONS))
CASES = [(kind, severity) for kind in CORRUPTIONS for severity in SEVERITIES]


def pictures(count=6, channels=3, height=32, width=32, seed=0):
    """uint8 images with large forms and small ones."""
    generator = torch.Generator().manual_seed(seed)
    forms = torch.rand(count, channels, 5, 5, generator=generator)
    forms = F.interpolate(forms, size=(height, width), mode="bicubic", align_corners=True)
    grain = torch.randn(count, channels, height, width, generator=generator) / 20
    return ((forms + grain).clamp(0, 1) * 255).round().to(torch.uint8)


def corrupted(pixels, kind, severity, seed=0):
    return corruptions.corrupt(pixels, kind, severity, torch.Generator().manual_seed(seed))


def constant(kind, severity):
    return CORRUPTIONS[kind].constants[severity - 1]


@settings(deadline=None, max_examples=40)
@given(KINDS, st.sampled_from(SEVERITIES), st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40))
def test_any_size_keeps_its_shape_and_range(kind, severity, channels, height, width):
    pixels = pictures(2, channels, height, width)
    found = corrupted(pixels, kind, severity)
    assert found.shape == pixels.shape and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= 1  # NaN would be neither
    assert not torch.equal(found, images.to_float(pixels))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_large_images_and_extreme_ones_keep_their_range(kind):
    large = pictures(1, 1, 512, 512)
    black_and_white = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    for pixels in (large, black_and_white):
        found = corrupted(pixels, kind, 5)
        assert found.shape == pixels.shape and found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize(("kind", "severity"), CASES)
def test_bytes_and_floats_in_any_layout_come_to_the_same_and_stay_as_they_are(kind, severity):
    pixels = pictures()
    floats = images.to_float(pixels)  # channels_last
    before = floats.clone()
    found = corrupted(pixels, kind, severity)
    assert torch.equal(found, corrupted(floats, kind, severity))
    assert torch.equal(found, corrupted(floats.contiguous(), kind, severity))
    assert torch.equal(floats, before)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_noise_follows_its_generator_and_nothing_else_does(kind):
    one, again, other = (corrupted(pictures(), kind, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (kind not in NOISE)


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_severity_is_further_from_the_clean_image_than_the_last(kind, channels):
    pixels = pictures(40, channels)
    clean = images.to_float(pixels)
    distances = [float((corrupted(pixels, kind, severity) - clean).square().mean()) for severity in SEVERITIES]
    assert all(low < high for low, high in itertools.pairwise([0.0, *distances]))


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("level", [0.3, 0.5])  # where no noise reaches 0 or 1
def test_noise_has_the_moments_of_its_formula(level, severity):
    flat = torch.full((50, 3, 32, 32), level)
    scale, photons = constant("gaussian_noise", severity), constant("shot_noise", severity)
    for kind, variance in (("gaussian_noise", scale**2), ("shot_noise", level / photons)):
        noise = corrupted(flat, kind, severity) - flat
        assert float(noise.mean()) == pytest.approx(0, abs=5 * (variance / noise.numel()) ** 0.5)
        assert float(noise.var()) == pytest.approx(variance, rel=0.03)
        pairs = noise.flatten()
        assert float((pairs[1:] * pairs[:-1]).mean()) == pytest.approx(0, abs=0.02 * variance)  # of pixel and neighbour
    counted = corrupted(flat, "shot_noise", severity) * photons
    assert torch.allclose(counted, counted.round(), atol=1e-3)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_is_scipys_correlation_with_the_published_kernel(severity):
    """Of 17x17 pixels, as `disk` of make_cifar_c.py makes it with OpenCV, and its borders."""
    radius, smoothing = constant("defocus_blur", severity)
    across, down = np.meshgrid(np.arange(-8, 9), np.arange(-8, 9))
    sharp = (across**2 + down**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(sharp / sharp.sum(), smoothing, radius=1)
    clean = images.to_float(pictures()).numpy()
    expected = ndimage.correlate(clean.astype(float), kernel[None, None], mode="mirror")
    np.testing.assert_allclose(corrupted(pictures(), "defocus_blur", severity).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_is_its_formula_for_each_image_and_channel(severity):
    found = corrupted(pictures(), "contrast", severity).numpy()
    for clean, dull in zip(pictures().numpy() / 255, found, strict=True):
        means = clean.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(dull, (clean - means) * constant("contrast", severity) + means, atol=1e-6)


def as_pil(image):
    """A uint8 image (C, H, W) as PIL's."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def from_pil(image):
    """PIL's image as levels (C, H, W), float."""
    levels = torch.from_numpy(np.array(image)).float()
    return levels.unsqueeze(0) if levels.ndim == 2 else levels.permute(2, 0, 1)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 8), (3, 48, 20), (1, 224, 64)])
def test_pixelate_is_pils_box_filter_down_and_up(channels, height, width, severity):
    """But for PIL's rounding to whole levels, once in each direction."""
    pixels, share = pictures(3, channels, height, width), constant("pixelate", severity)
    for clean, coarse in zip(pixels, corrupted(pixels, "pixelate", severity) * 255, strict=True):
        small = as_pil(clean).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
        expected = from_pil(small.resize((width, height), Image.Resampling.BOX))
        assert (coarse - expected).abs().max() <= 1.01


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 8, 8), (3, 21, 50), (1, 30, 17)])
def test_jpeg_is_pils_at_the_published_quality_image_by_image(channels, height, width, severity):
    pixels = pictures(3, channels, height, width)
    for clean, coded in zip(pixels, corrupted(pixels, "jpeg", severity) * 255, strict=True):
        file = io.BytesIO()
        as_pil(clean).save(file, "JPEG", quality=constant("jpeg", severity))
        torch.testing.assert_close(coded, from_pil(Image.open(file)), atol=1e-3, rtol=0)


LUMINANCE = """ 16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
    18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99 """


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_of_grey_images_is_the_cosine_transform_rounded_by_the_standards_table(severity):
    """Annex K of the standard, scaled to the quality as the Independent JPEG Group does.

    A quarter of a level is lost by rounding pixels, and as much where the encoder rounds a coefficient the other way;
    a quality that is off by one costs 0.7 of a level or more.
    """
    pixels, quality = pictures(8, 1), constant("jpeg", severity)
    scale = 200 - 2 * quality if quality >= 50 else 5000 // quality
    steps = (np.array(LUMINANCE.split(), dtype=int).reshape(8, 1, 8) * scale + 50) // 100
    blocks = pixels.numpy().reshape(8, 4, 8, 4, 8).astype(float) - 128
    rounded = np.round(fft.dctn(blocks, axes=(2, 4), norm="ortho") / steps) * steps
    expected = (fft.idctn(rounded, axes=(2, 4), norm="ortho") + 128).clip(0, 255).reshape(8, 1, 32, 32)
    assert np.abs(corrupted(pixels, "jpeg", severity).numpy() * 255 - expected).mean() < 0.6


def test_jpeg_refuses_what_is_neither_grey_nor_rgb():
    with pytest.raises(ValueError, match="1 or 3 channels, got 4"):
        corrupted(pictures(channels=4), "jpeg", 1)
    for kind in CORRUPTIONS.keys() - {"jpeg"}:
        assert corrupted(pictures(channels=4), kind, 1).shape[1] == 4


@pytest.mark.parametrize("severity", [0, 6, -1])
def test_a_severity_that_there_is_not_is_refused(severity):
    with pytest.raises(ValueError, match="severity must be one of"):
        corrupted(pictures(), "contrast", severity)


class Watched(nn.Module):
    """A random linear classifier of pictures that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()  # off, if the model is held in eval mode
        self.linear = nn.Linear(3 * 32 * 32, 4)
        nn.init.normal_(self.linear.weight, generator=torch.Generator().manual_seed(0))
        self.shown = []

    def forward(self, x):
        self.shown.append(x)
        return self.linear(self.dropout((x - x.mean((1, 2, 3), keepdim=True)).flatten(1)))


@pytest.fixture
def case():
    """A model, and images labelled as it says, so that what a corruption turns is wrong."""
    model, pixels = Watched().eval(), pictures(60)
    labels = model(images.to_float(pixels)).argmax(1)
    model.shown.clear()
    return model, ImageSet(pixels, labels, list("abcd"))


def test_correct_is_what_the_model_says_of_each_kind_and_severity(case):
    model, image_set = case
    model.train()
    kinds = list(CORRUPTIONS)
    found = corruptions.correct(model, image_set, kinds, seed=7)
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    assert found.shape == (len(kinds), len(SEVERITIES), len(image_set)) and found.dtype == torch.bool
    for (row, kind), (column, severity) in itertools.product(enumerate(kinds), enumerate(SEVERITIES)):
        shown = corruptions.corrupt(image_set.images, kind, severity, corruptions.seeded(kind, severity, 7))
        assert torch.equal(found[row, column], model(shown).argmax(1) == image_set.labels)
    assert 0 < int(found[kinds.index("gaussian_noise"), -1].sum()) < len(image_set)


def test_a_kind_is_judged_alike_alone_and_among_others(case):
    model, image_set = case
    few = corruptions.correct(model, image_set, ["shot_noise"], seed=0)
    shown, model.shown = model.shown, []
    more = corruptions.correct(model, image_set, ["jpeg", "gaussian_noise", "shot_noise"], seed=0)
    assert torch.equal(few[0], more[2])
    assert all(map(torch.equal, shown, model.shown[-len(SEVERITIES) :]))
    model.shown.clear()
    corruptions.correct(model, image_set, ["shot_noise"], seed=1)
    assert not torch.equal(shown[0], model.shown[0])


def test_every_kind_severity_and_seed_draws_other_numbers():
    draws = {
        tuple(torch.rand(4, generator=corruptions.seeded(kind, severity, seed)).tolist())
        for (kind, severity), seed in itertools.product(CASES, range(3))
    }
    assert len(draws) == len(CASES) * 3


def test_batches_make_no_difference_but_each_has_noise_of_its_own(case, monkeypatch):
    model, image_set = case
    sound = ["defocus_blur", "contrast", "pixelate", "jpeg"]
    whole = corruptions.correct(model, image_set, sound, seed=0)
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 16)  # 60: no multiple of it
    assert torch.equal(corruptions.correct(model, image_set, sound, seed=0), whole)
    model.shown.clear()
    twins = image_set.take(torch.zeros(32, dtype=torch.int64))
    corruptions.correct(model, twins, ["gaussian_noise"], seed=0)
    assert not torch.equal(model.shown[0], model.shown[1])
