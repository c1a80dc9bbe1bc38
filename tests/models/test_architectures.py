"""Architectures of any size: any input, any number of classes, normalised by the model itself."""

import pytest
import torch

from stages.common import models
from stages.common.models import architectures

OPTIONS = {"whitened_cnn": {"widths": [8, 12, 16]}, "simple_cnn": {}, "resnet18": {"width": 8}}


def build(name="whitened_cnn", *, channels=3, classes=10):
    torch.manual_seed(0)
    return models.build(name, channels=channels, classes=[f"c{i}" for i in range(classes)], **OPTIONS[name])


@pytest.mark.parametrize("name", models.ARCHITECTURES)
@pytest.mark.parametrize(
    ("size", "channels", "classes"), [(8, 1, 2), (24, 3, 10), (33, 1, 37), (64, 3, 5), (225, 3, 3), (512, 1, 2)]
)
def test_any_input_and_any_number_of_classes(name, size, channels, classes):
    model = build(name, channels=channels, classes=classes).eval()
    images = torch.rand(3, channels, size, size)
    model.adapt(images)
    features = model.features(images)
    assert features.shape[0] == 3 and features.ndim == 2
    assert model(images).shape == (3, classes)
    assert torch.equal(model(images), model.head(features))


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_large_images_are_pooled_behind_the_stem_and_others_are_not(name, monkeypatch):
    model = build(name).eval()
    images = {size: torch.rand(2, 3, *size) for size in ((8, 8), (32, 32), (63, 64), (66, 64), (200, 8), (224, 224))}
    with torch.no_grad():
        found = {size: model(batch) for size, batch in images.items()}
        assert all(max(maps.shape[-2:]) <= 64 for batch in images.values() for maps in model.maps(batch))
        monkeypatch.setattr(architectures, "STEM_SIDE", 512)
        same = {size for size, batch in images.items() if torch.equal(model(batch), found[size])}
    halved = {"simple_cnn": {(66, 64)}}.get(name, set())  # its first layer halves them
    assert same == {(8, 8), (32, 32), (63, 64)} | halved


def test_the_stem_whitens():
    model = build()
    images = torch.rand(200, 3, 1, 1).expand(-1, -1, 16, 16) * 0.5 + torch.rand(200, 3, 16, 16) * 0.5
    model.adapt(images)
    with torch.no_grad():
        maps = model.whiten(model.normalize(images))
    half = maps[:, : maps.shape[1] // 2].permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(half @ half.T / half.shape[1], torch.eye(12, dtype=torch.float64), atol=0.02, rtol=0)
    torch.testing.assert_close(maps[:, 12:], -maps[:, :12])  # no direction is lost to the activation that follows


def test_the_stem_lifts_nothing_that_noise_drowns():
    """Of flat images with a faint texture: whitened alone they show the texture as loud as the rest, for +-0.1 about as
    the signal is to signal and noise.
    """
    model = build(channels=1)
    images = torch.rand(300, 1, 1, 1).expand(-1, -1, 16, 16) * 0.5 + torch.rand(300, 1, 16, 16) * 0.02
    loudness = {}
    for noise in (0.0, 0.1):
        model.adapt(images, noise)
        with torch.no_grad():
            loudness[noise] = model.whiten(model.normalize(images))[:, :4].permute(1, 0, 2, 3).flatten(1).var(1)
    faint, std = 0.02**2 / 12, float(model.normalize.std)
    torch.testing.assert_close(
        loudness[0.0],
        torch.full((4,), faint / (faint + 5e-4 * std**2)).index_fill(0, torch.tensor(0), 1),
        atol=0.02,
        rtol=0,
    )
    assert loudness[0.1][0] > 0.8 and (loudness[0.1][1:] < 2 * faint / 0.1**2).all()


def test_a_checkpoint_of_before_has_relu_and_another_activation_is_refused():
    x = torch.rand(4, 3, 16, 16)
    made = {}
    for options in ({}, {"activation": "relu"}, {"activation": "silu"}):
        torch.manual_seed(0)
        model = models.build("whitened_cnn", channels=3, classes=["a", "b"], widths=[8], **options).eval()
        model.adapt(x)
        made[options.get("activation")] = model(x)
    assert torch.equal(made[None], made["relu"]) and not torch.equal(made[None], made["silu"])
    with pytest.raises(ValueError, match="silu, relu"):
        models.build("whitened_cnn", channels=3, classes=["a", "b"], widths=[8], activation="gelu")


def test_normalisation_is_the_models_own():
    model = build()
    images = torch.rand(50, 3, 8, 8) * 0.2 + 0.5
    model.adapt(images)
    normalised = model.normalize(images)
    assert normalised.mean().abs() < 1e-3 and (normalised.std() - 1).abs() < 0.01


def test_the_recipe_is_what_a_model_was_built_from():
    """And stays so, whatever becomes of the lists that it was given."""
    names = ["a", "b"]
    model = models.build("whitened_cnn", channels=1, classes=names, widths=[8])
    names.append("c")
    assert model.recipe == {"name": "whitened_cnn", "channels": 1, "classes": ["a", "b"], "widths": [8]}
    assert model.classes == ["a", "b"]


def test_an_unknown_architecture_is_refused_with_all_that_are_known():
    with pytest.raises(ValueError, match="vgg") as raised:
        models.build("vgg", channels=3, classes=["a", "b"])
    assert all(name in str(raised.value) for name in models.ARCHITECTURES)


def test_no_compiled_graph_looks_for_the_largest():
    """Its gradient compares for equality what such a graph computes twice, on a GPU not alike."""
    seen = []

    def spy(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model, x = build().eval(), torch.rand(5, 3, 32, 32)
    compiled = torch.compile(model, backend=spy)
    assert torch.equal(compiled(x), model(x))
    assert any("conv" in target for target in seen) and not any("amax" in target for target in seen)
