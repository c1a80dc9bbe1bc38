"""Detectors: what each view shows, that batches do not matter, and that gradients point the right way."""

import errno
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages.common import arrays, images, models, params
from stages.common.detection import detectors, scores
from stages.common.detection.detectors import DETECTORS, Sight
from stages.common.errors import UserError
from tests.repository import ROOT


def test_a_set_is_seen_the_same_in_any_batches(model, digits, monkeypatch, sight):
    some = digits.take(torch.arange(97))
    whole = detectors.see(model, some, sight)
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 32)
    parts = detectors.see(model, some, sight)
    assert set(whole) == {"plain", "deep", "odin"}
    for view in ("plain", "deep"):
        for one, other in zip(whole[view], parts[view], strict=True):
            torch.testing.assert_close(one, other)
    x = images.to_float(some.images)
    with torch.no_grad():
        torch.testing.assert_close(whole["plain"].logits, model(x))
        torch.testing.assert_close(whole["plain"].features, model.features(x))


@pytest.mark.parametrize("name", ["whitened_cnn", "simple_cnn", "resnet18"])
def test_layers_end_with_the_penultimate_features(name):
    options = {"whitened_cnn": {"widths": [4, 8]}, "simple_cnn": {}, "resnet18": {"width": 8}}[name]
    model = models.build(name, channels=3, classes=["a", "b", "c"], **options).eval()
    x = torch.rand(5, 3, 32, 32)
    *groups, last = model.layers(x)
    assert torch.equal(last, model.features(x)) and torch.equal(model.head(last), model(x))
    assert [len(g) for g in groups] == [5] * {"whitened_cnn": 2, "simple_cnn": 2, "resnet18": 4}[name]
    for group, maps in zip(groups, model.maps(x), strict=True):
        torch.testing.assert_close(group, maps.mean((2, 3)))


def test_the_deep_view_does_not_tell_left_from_right_if_a_mirror_image_means_the_same(model, digits, sight):
    x = images.to_float(digits.images[:20])
    mirrored = x.flip(3).contiguous()
    with torch.no_grad():
        for one, other in zip(
            *(detectors.views(model, side, sight, ["deep"])["deep"] for side in (x, mirrored)), strict=True
        ):
            torch.testing.assert_close(one, other)
        alone = detectors.views(model, x, replace(sight, mirror=False), ["deep"])["deep"]
        torch.testing.assert_close(alone.logits, model(x))
    lengths = [part.norm(dim=1) for part in alone.features.split([layer.shape[1] for layer in model.layers(x)], dim=1)]
    for length in lengths:  # each group weighs the same
        torch.testing.assert_close(length, torch.ones(20))


def test_odin_equals_pytorch_ood(model, digits, sight, options):
    from pytorch_ood.detector import ODIN

    # inside [0, 1] by more than the step, where clamping to the image, which ODIN does not do, changes nothing
    x = images.to_float(digits.images[:100]) * 0.9 + 0.05
    output = detectors.views(model, x, sight, ["odin"])["odin"]
    ours = DETECTORS["odin"].fit(scores.FitData(*output, digits.labels[:100]), options)(*output)
    reference = ODIN(model, eps=sight.odin_eps, temperature=sight.odin_temperature).predict(x)
    torch.testing.assert_close(ours.sigmoid().float(), -reference.detach().cpu(), rtol=0, atol=1e-6)


def test_odin_makes_images_more_like_what_they_are_taken_for(model, digits, sight):
    x = images.to_float(digits.images[:200])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = detectors.views(model, x, sight, ["odin"])["odin"].logits * sight.odin_temperature
    with torch.no_grad():
        logits = model(x)
    predicted = logits.argmax(1)
    losses = [F.cross_entropy(z, predicted, reduction="none") for z in (moved, logits)]
    assert (losses[0] < losses[1]).float().mean() > 0.95
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "odin"])
def test_a_step_along_the_gradient_raises_that_detector_s_confidence(model, digits, fitted, name, sight):
    """Each detector is attacked on its own objective, in both directions, without vanishing gradients."""
    x = images.to_float(digits.images[300:500])
    gradient = detectors.confidence_gradient(model, name, fitted[name], x, sight)
    assert gradient.shape == x.shape and gradient.isfinite().all() and (gradient != 0).flatten(1).any(1).all()
    up, still, down = (
        detectors.confidence(model, name, fitted[name], x + step * gradient.sign(), sight) for step in (1e-3, 0, -1e-3)
    )
    assert (up > still).double().mean() > 0.9 and (down < still).double().mean() > 0.9


def test_confidences_of_a_set_are_those_of_its_batches(model, digits, fitted, sight):
    some = digits.take(torch.arange(300, 360))
    x = images.to_float(some.images)
    by_set = detectors.score(fitted, detectors.see(model, some, sight))
    assert set(by_set) == set(DETECTORS)
    for name, confidences in by_set.items():
        direct = detectors.confidence(model, name, fitted[name], x, sight)
        assert confidences.dtype == torch.float64 and confidences.isfinite().all()
        torch.testing.assert_close(confidences, direct, rtol=1e-4, atol=1e-4)


def test_a_saturated_softmax_is_attacked_all_the_same(model, digits, sight, options):
    """Logits a thousand times as large: max softmax is 1 in float32 and has no gradient there; its log-odds have."""
    loud = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8, 16])
    loud.load_state_dict(model.state_dict())
    loud.linear.weight.data.mul_(1000)
    loud.eval()
    x = images.to_float(digits.images[:50])
    assert (loud(x).softmax(1).amax(1) == 1).float().mean() > 0.5
    apply = scores.max_softmax(None, options)
    gradient = detectors.confidence_gradient(loud, "max_softmax", apply, x, sight)
    assert (gradient != 0).flatten(1).any(1).all()


@pytest.mark.parametrize("flip", [True, False])
def test_a_mirror_image_means_the_same_where_training_mirrors(flip):
    overrides = {"datasets.cifar10.training.flip": flip, "ood_eval.odin_temperature": 10, "ood_eval.odin_eps": "1/255"}
    sight = Sight.from_params(params.load(ROOT / "params.yaml", overrides=overrides))
    assert sight == Sight(mirror=flip, odin_temperature=10, odin_eps=1 / 255)


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Whatever is fitted lies on disk and is gone through some images at a time."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    monkeypatch.setattr(detectors, "LARGE", 0)
    monkeypatch.setattr(scores, "PART", 2500)  # of images of 64 or of 160 bytes
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 16)


def test_what_is_fitted_on_disk_is_what_is_fitted_in_memory(model, digits, sight, options, fitted, on_disk):
    """Confidences and their gradients, of every detector; no file is left."""
    others = detectors.fit_on(model, digits.take(images.sample(digits.labels, 300)), sight, options)
    assert others.keys() == fitted.keys() and list(Path("data").iterdir()) == []
    x = images.to_float(digits.images[300:340])
    for name in fitted:
        one, other = (detectors.confidence(model, name, by[name], x, sight) for by in (fitted, others))
        # `nnguide` alone is made of float32 similarities
        torch.testing.assert_close(one, other, rtol=1e-6 if name == "nnguide" else 1e-9, atol=1e-12, msg=name)
        if name != "odin":
            up, same = (detectors.confidence_gradient(model, name, by[name], x, sight) for by in (fitted, others))
            torch.testing.assert_close(up, same, rtol=1e-4, atol=1e-6 * float(up.abs().max()), msg=name)


def test_a_disk_without_room_for_what_is_fitted_is_one_line(model, digits, sight, options, on_disk, monkeypatch):
    def full(file, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(arrays, "make_room", full)
    with pytest.raises(UserError, match=r"data: the disk has no room for 0.0 GB .* run again$"):
        detectors.fit_on(model, digits.take(torch.arange(100)), sight, options, names=["knn"])


FEATURES = {name for name in DETECTORS if name not in scores.OF_LOGITS} - {"odin"}
DEEP = {name for name, detector in DETECTORS.items() if detector.view == "deep"}


@pytest.mark.parametrize(
    ("images_of_a_class", "face", "without"),
    [
        (30, {}, set()),
        (7, {}, {"nnguide"}),  # of 10 guides
        (4, {}, {"knn", "deep_knn", "deep_knn_entropy", "nnguide"}),
        (1, {}, {"knn", "deep_knn", "deep_knn_entropy", "nnguide", *detectors.SPANNING}),  # of 16 features
        (30, {"has_features": False}, FEATURES),
        (30, {"has_stages": False}, DEEP),
    ],
)
def test_detectors_with_too_little_to_look_at_are_not_applicable(
    model, digits, options, monkeypatch, images_of_a_class, face, without
):
    for name, value in face.items():
        monkeypatch.setattr(model, name, value)
    some = digits.take(images.sample(digits.labels, 10 * images_of_a_class))
    found = detectors.not_applicable(model, options, some)
    assert set(found) == without and all(found.values())
    assert detectors.of_both({"one": model, "other": model}, options, some) == [
        n for n in DETECTORS if n not in without
    ]
