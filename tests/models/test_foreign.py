"""Somebody else's module behind the face of a classifier: what is odd about it is put right and named, or refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stages.common import attacks, models, normalization
from stages.common.errors import UserError
from stages.common.models import origins
from stages.common.models.foreign import Foreign
from stages.common.normalization import NORMALIZATIONS, Moments

CLASSES = list("abcde")


class Net(nn.Module):
    """A small net; each subclass does one thing that is odd."""

    def __init__(self, outputs: int = 5, channels: int = 3):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 8, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(8, 6, 3))
        )
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, outputs)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.body(x).mean((2, 3))))


class Probabilities(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


class Scaled(Net):
    def forward(self, x):
        return super().forward(x) / 7


class Twice(Net):
    def forward(self, x):
        return self.head(x.mean((1, 2, 3))[:, None].expand(-1, 6)) + super().forward(x)


class Several(Net):
    def forward(self, x):
        return x, super().forward(x)


class Named(Net):
    def forward(self, x):
        return {"loss": x.sum(), "logits": super().forward(x)}


class InPlace(Net):
    def forward(self, x):
        return super().forward(F.relu_(x.sub_(0.5)))


class Viewed(Net):
    def forward(self, x):
        return self.head(self.body(x).view(len(x), 6, -1).mean(2))


class DropoutOn(Net):
    def train(self, mode: bool = True):
        super().train(mode)
        self.drop.train()
        return self


class Defence(Net):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


class Counts(Net):
    def forward(self, x):
        self.seen += 1
        return super().forward(x)


class Drifts(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) + self.calls


class NoGradient(Net):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class Rounded(Net):
    def forward(self, x):
        return super().forward((x * 255).byte().float())


class Blind(Net):
    def forward(self, x):
        return self.head.bias.expand(len(x), -1) + 0 * x.detach().sum()


class NotFinite(Net):
    def forward(self, x):
        return super().forward(x).log()


class FixedSize(Net):
    def forward(self, x):
        assert x.shape[-1] == 64, "64 pixels"
        return super().forward(x)


class FixedBatch(Net):
    def forward(self, x):
        assert len(x) == 1
        return super().forward(x)


class Maps(Net):
    def forward(self, x):
        return self.body(x)


def behind(
    module: nn.Module, *, channels: int = 3, size: int = 12, moments: Moments = NORMALIZATIONS["none"]
) -> Foreign:
    found = Foreign(module.eval(), origin="py:nets:odd", channels=channels, size=size, classes=CLASSES, moments=moments)
    return found.eval()


def pixels(count: int = 4, channels: int = 3, size: int = 12) -> Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", [Net, Scaled, Probabilities, Several, Named, InPlace, Viewed])
def test_its_features_through_its_head_are_its_logits(kind):
    module, x = kind(), pixels()
    model = behind(module)
    with torch.no_grad():
        *stages, features = model.layers(x)
        assert model.has_features and model.has_stages and [stage.shape for stage in stages] == [(4, 8), (4, 6)]
        assert torch.allclose(model.head(features), model(x), atol=1e-5)
        assert torch.equal(model.features(x), features) and features.shape == (4, 6)
        output = module(x.clone())
    scores = {Several: lambda: output[1], Named: lambda: output["logits"], Probabilities: lambda: output.log()}
    assert torch.allclose(model(x), scores.get(kind, lambda: output)(), atol=1e-5)


def test_attacks_on_it_are_attacks_on_the_module():
    module, x, y = Net().eval(), pixels(), torch.tensor([0, 1, 2, 3])
    model = behind(module)
    assert torch.allclose(attacks.fgsm(model, x, y, 0.1), attacks.fgsm(module, x, y, 0.1), atol=1e-6)
    assert torch.equal(attacks.fgsm_sweep(model, x, y, [0, 0.1, 0.5]), attacks.fgsm_sweep(module, x, y, [0, 0.1, 0.5]))


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (Probabilities, "probabilities (a softmax inside)"),
        (Several, "several outputs|2 outputs"),
        (Named, "several outputs|'logits'"),
        (DropoutOn, "dropout is left on in drop"),
        (Defence, "a random defence"),
    ],
)
def test_what_is_odd_is_named(kind, word):
    (remark,) = behind(kind()).remarks
    assert any(part in remark for part in word.split("|")), remark


def test_half_precision_is_named_and_computed_in_full():
    model = behind(Net().half())
    assert model.remarks == ["its weights are of half precision: computed in float32"]
    assert model(pixels()).dtype == torch.float32
    assert behind(Net()).remarks == []


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: Net(outputs=1), ["one number an image"]),
        (lambda: Net(outputs=9), ["9 scores", "5 classes", "--classes"]),
        (lambda: Net(outputs=3), ["3 scores", "5 classes"]),
        (lambda: Net(channels=1), ["takes images of 1 channels, and these have 3"]),
        (Counts, ["changes from call to call", "seen"]),
        (Drifts, ["changes from call to call"]),
        (NoGradient, ["no gradient"]),
        (Rounded, ["no gradient"]),
        (Blind, ["does not look at its images|no gradient"]),
        (NotFinite, ["not finite"]),
        (FixedSize, ["does not take images of 12x12", "64x64: --size 64"]),
        (FixedBatch, ["one image at a time"]),
        (Maps, ["(2, 6, 8, 8)", "one score a class"]),
        (lambda: nn.Sequential(nn.Linear(7, 5)), ["fails on images of (3, 12, 12)"]),
    ],
)
def test_what_cannot_be_judged_is_refused(module, words):
    with pytest.raises(UserError) as raised:
        behind(module())
    said = str(raised.value)
    assert "py:nets:odd" in said and all(any(p in said for p in word.split("|")) for word in words), said


@pytest.mark.parametrize("kind", [Twice, lambda: nn.Sequential(nn.Conv2d(3, 5, 12), nn.Flatten())])
def test_where_no_last_layer_gives_the_logits_they_stand_for_the_features(kind):
    model, x = behind(kind()), pixels()
    assert not model.has_features
    assert torch.equal(model.head(model.features(x)), model(x))


@pytest.mark.parametrize(
    ("origin", "size", "width"),
    [
        ("torchvision:resnet18", 40, 512),
        ("torchvision:vgg11_bn", 32, 4096),
        ("torchvision:mobilenet_v3_small", 32, 1024),
        ("timm:test_vit", 160, 64),
        ("timm:resnet10t", 32, 512),
    ],
)
def test_real_architectures_are_seen_through(origin, size, width):
    torch.manual_seed(0)
    module = origins.find(origin, classes=5, channels=3, pretrained=False).module
    model = Foreign(module, origin=origin, channels=3, size=size, classes=CLASSES).eval()
    x = pixels(2, 3, size)
    with torch.no_grad():
        *stages, features = model.layers(x)
        assert features.shape == (2, width) and model.has_features and model.has_stages
        assert all(stage.ndim == 2 and len(stage) == 2 for stage in stages)
        assert torch.allclose(model.head(features), model(x), atol=1e-4)
    assert model.remarks == []


@pytest.mark.parametrize("export", [torch.jit.script, lambda module: torch.jit.trace(module, pixels())])
def test_torchscript_is_seen_through_too(tmp_path, export):
    module = Net().eval()
    export(module).save(tmp_path / "net.ts")
    loaded = origins.find(f"ts:{tmp_path / 'net.ts'}", classes=5, channels=3, pretrained=False).module
    model, x = behind(loaded), pixels()
    assert model.has_features and not model.has_stages
    with torch.no_grad():
        assert torch.allclose(model.features(x), behind(module).features(x), atol=1e-6)
        assert torch.allclose(model.head(model.features(x)), module(x), atol=1e-5)
    y = torch.tensor([0, 1, 2, 3])
    assert torch.allclose(attacks.fgsm(model, x, y, 0.1), attacks.fgsm(module, x, y, 0.1), atol=1e-6)


def test_ours_keeps_its_own_layers():
    ours = models.build("simple_cnn", channels=3, classes=CLASSES).eval()
    model, x = behind(ours), pixels()
    for mine, theirs in zip(model.layers(x), ours.layers(x), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("moments", [None, NORMALIZATIONS["imagenet"]])
def test_a_checkpoint_names_where_it_comes_from_and_is_loaded_through_it(tmp_path, monkeypatch, moments):
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    model = models.build(
        "custom", channels=3, classes=CLASSES, origin="py:own_net.py:build", size=12, moments=moments
    ).eval()
    x = pixels(8)
    model.adapt(x)
    expected = x.mean((0, 2, 3)) if moments is None else torch.tensor(moments.mean)
    assert torch.allclose(model.normalize.mean.flatten(), expected)
    torch.save(models.checkpoint(model), "m.pt")
    again = models.load_checkpoint("m.pt")
    assert torch.equal(again(x), model(x)) and again.recipe == model.recipe
    (tmp_path / "own_net.py").unlink()
    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(UserError, match=r"a model of py:own_net\.py:build, which is needed here"):
        models.load_checkpoint(tmp_path / "m.pt")


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0.1, 2)), min_size=1, max_size=3).map(
        lambda pairs: Moments(*(tuple(round(n, 5) for n in side) for side in zip(*pairs, strict=True)))
    )
)
@settings(deadline=None, max_examples=25)
def test_a_normalisation_reads_as_it_is_written(moments):
    assert normalization.parse(str(moments)) == moments


@pytest.mark.parametrize("text", ["imagnet", "0.5", "0.5/0", "0.5/-1", "1,2/3", "a/b", "nan/1", "0.5/0.5/0.5", ""])
def test_another_normalisation_is_refused_with_what_is_allowed(text):
    with pytest.raises(ValueError, match="MEAN/STD"):
        normalization.parse(text)


def test_a_normalisation_for_other_channels_is_refused():
    with pytest.raises(UserError, match="for 3 channels, and the images have 1"):
        behind(Net(channels=1), channels=1, moments=NORMALIZATIONS["imagenet"])
