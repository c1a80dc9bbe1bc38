"""A training stage with somebody else's model: trained by the recipe, or adopted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from stages import train_robust, train_standard
from stages.common import accuracy, artifacts, evaluation, images, models, params, training
from stages.common.errors import UserError
from stages.common.images import ImageSet
from tests.repository import ROOT
from tests.small import parts

CODE = """
from torch import nn


def build(outputs=10):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, outputs)
    )


def eleven():
    return build(11)
"""
KNOBS = {
    "dataset": "digits",
    "eps": 0.05,
    "train_robust.validation_images": 40,
    "train_robust.pgd_steps": 2,
    "datasets.digits.train_standard.epochs": 3,
    "datasets.digits.train_robust.epochs": 3,
    "datasets.digits.target": "3",
    "datasets.digits.prepare.ood_classes": ["9"],
    "models.custom.factory": "py:own_net.py:build",
    "models.whitened_cnn.widths": [8, 8],
    "models.custom.learning_rate": 1.0,
}


def write_params(changes: dict[str, object]) -> None:
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in (KNOBS | changes).items():
        section = content
        *names, last = key.split(".")
        for name in names:
            section = section[name]
        section[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def project(tmp_path, monkeypatch, digits):
    """A folder with prepared digits (all ten are learnt) and own_net.py."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_net.py").write_text(CODE)
    train, val = parts(digits)
    for name, part in {"train": train, "val": val, "test": digits.take(torch.arange(1600, 1797))}.items():
        arrays = {"images": part.images.numpy(), "labels": part.labels.numpy(), "classes": np.array(part.classes)}
        artifacts.write_arrays(artifacts.PREPARED / f"{name}.npz", **arrays)
    written = {"dataset": "digits", "classes": digits.classes, "sizes": {"train": len(train)}}
    artifacts.write_metrics(artifacts.METRICS / "data.json", written)
    return tmp_path


def weights_of(image_set: ImageSet, name: str) -> nn.Module:
    """own_net.py's model, trained with a plain loop on raw pixels; its weights in a file as DataParallel saves them."""
    space: dict[str, object] = {}
    exec(CODE, space)
    torch.manual_seed(0)
    net = space["build"]()
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(40):
        batch = torch.arange(step * 64, step * 64 + 64) % len(image_set)
        loss = nn.functional.cross_entropy(net(image_set.images[batch] / 255), image_set.labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, name)
    return net.eval()


def metrics(name: str) -> dict:
    return json.loads(Path(f"metrics/train_{name}.json").read_text())


def test_accuracies_have_the_intervals_of_their_samples(project):
    """Of all images of a set, and under attack of the few validation images that are attacked."""
    write_params({})
    train_robust.main()
    found, model = metrics("robust"), models.load_checkpoint("data/checkpoints/robust.pt")
    for name in ("train", "val", "test"):
        part = images.read(name)
        right = evaluation.predictions(model, part.images) == part.labels
        wanted = accuracy.figures({name: right}, 0.95)
        assert {key: found["accuracy"][key] for key in wanted} == pytest.approx(wanted, abs=1e-4)
    for name in ("val_fgsm", "val_pgd", "val_margin"):
        low, high = accuracy.interval_of_count(round(40 * found[name]), 40, 0.95)
        assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=1e-4)
    assert found["val_margin"] <= found["val_pgd"] <= found["val_fgsm"] and set(found["balanced_accuracy"]) == {
        "train",
        "val",
        "test",
    }


@pytest.mark.parametrize("which", artifacts.MODELS)
def test_rates_are_for_batches_of_1024_and_scale_with_others(which):
    """SGD's with the batch size, Muon's with its root, and none stays none."""
    section = {"models.whitened_cnn.learning_rate": 1.2, "models.whitened_cnn.filter_rate": 0.2}
    for size, rate, filter_rate in ((1024, 1.2, 0.2), (256, 0.3, 0.1), (4096, 4.8, 0.4)):
        knobs = params.load(ROOT / "params.yaml", overrides=section | {"datasets.cifar10.training.batch_size": size})
        recipe = training.Recipe.from_params(knobs, which, torch.device("cpu"))
        assert (recipe.learning_rate, recipe.filter_rate) == pytest.approx((rate, filter_rate))
    plain = params.load(ROOT / "params.yaml", overrides={"models.whitened_cnn.filter_rate": None})
    assert training.Recipe.from_params(plain, which, torch.device("cpu")).filter_rate is None


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_precision_is_that_of_params_yaml(precision):
    knobs = params.load(ROOT / "params.yaml", overrides={"precision": precision})
    recipes = [training.Recipe.from_params(knobs, which, torch.device("cpu")) for which in artifacts.MODELS]
    assert [recipe.bfloat16 for recipe in recipes] == [precision == "bfloat16"] * 2


def test_what_works_between_gpus_alone_is_refused_elsewhere():
    knobs = params.load(ROOT / "params.yaml", overrides={"distributed.sync_batchnorm": True})
    with pytest.raises(UserError, match=r"distributed\.sync_batchnorm = true: it works between GPUs alone; set false"):
        training.Recipe.from_params(knobs, "robust", torch.device("cpu"))
    assert training.Recipe.from_params(knobs, "robust", torch.device("cuda")).sync_batchnorm


def test_somebody_else_s_architecture_is_trained_both_ways(project):
    write_params({"model.name": "custom"})
    train_standard.main()
    train_robust.main()
    for name in artifacts.MODELS:
        model = models.load_checkpoint(f"data/checkpoints/{name}.pt")
        assert model.recipe["origin"] == "py:own_net.py:build" and model.has_features
        assert metrics(name)["accuracy"]["test"] == pytest.approx(
            evaluation.accuracy(model, images.read("test")), abs=1e-4
        )
        assert metrics(name)["epoch"] > 0 and model.normalize.std < 0.6  # the training images' own moments
    assert metrics("standard")["accuracy"]["test"] > 0.5


def test_weights_are_adopted_and_nothing_is_trained(project):
    net = weights_of(images.read("train"), "w.pth")
    adopted = {"train_standard.model": "py:own_net.py:build", "train_standard.weights": "w.pth"}
    write_params(adopted | {"models.custom.normalize": "none"})
    train_standard.main()
    model, test = models.load_checkpoint("data/checkpoints/standard.pt"), images.read("test")
    assert torch.allclose(model(test.images / 255), net(test.images / 255), atol=1e-5)
    assert metrics("standard")["epoch"] == 0 and metrics("standard")["accuracy"]["test"] > 0.8
    table = Path("plots/training_standard.csv").read_text().splitlines()
    assert table[0] == "epoch,loss,train_accuracy,val_accuracy,learning_rate" and len(table) == 2
    assert list(Path("data/checkpoints").iterdir()) == [Path("data/checkpoints/standard.pt")]


def test_a_checkpoint_of_this_project_is_adopted_with_its_architecture(project):
    write_params({"model.name": "simple_cnn"})
    train_standard.main()
    Path("data/checkpoints/standard.pt").rename("before.pt")
    write_params({"train_robust.weights": "before.pt"})
    train_robust.main()
    before, now = models.load_checkpoint("before.pt"), models.load_checkpoint("data/checkpoints/robust.pt")
    assert now.recipe == before.recipe and now.recipe["name"] == "simple_cnn"
    found = metrics("robust")
    assert "trained_eps" not in found and found["val_pgd"] <= found["val_fgsm"] <= found["accuracy"]["val"] + 0.1


def test_an_adopted_model_near_chance_is_told_why(project, capsys):
    weights_of(ImageSet(255 - images.read("train").images, *images.read("train")[1:]), "w.pth")
    adopted = {"train_standard.model": "custom", "train_standard.weights": "w.pth"}
    write_params(adopted | {"models.custom.normalize": "5/0.01"})
    train_standard.main()
    assert "warning: standard: near chance" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "custom", "models.custom.factory": "py:own_net.py:eleven"}, ["11 scores", "10 classes"]),
        ({"model.name": "custom", "models.custom.factory": "py:absent.py:build"}, ["no file absent.py"]),
        ({"train_standard.weights": "w.pth"}, ["w.pth", "another architecture"]),
        ({"train_standard.weights": "other.pt"}, ["other.pt knows 2 classes (a, b"]),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(project, changes, words):
    weights_of(images.read("train"), "w.pth")
    torch.save(models.checkpoint(models.build("simple_cnn", channels=1, classes=["a", "b"])), "other.pt")
    write_params(changes)
    with pytest.raises(UserError) as raised:
        train_standard.main()
    assert all(word in str(raised.value) for word in words), raised.value
    assert not Path("data/checkpoints").exists() and not Path("plots").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.name": "custom", "models.custom.factory": None}, ["models.custom.factory is empty", "py:file.py"]),
        ({"models.custom.factory": "own_net"}, ["models.custom.factory = 'own_net'", "timm:NAME"]),
        ({"train_robust.model": "resnet81"}, ["train_robust.model = 'resnet81'", "whitened_cnn", "torchvision:NAME"]),
        ({"train_robust.weights": "absent.pt"}, ["train_robust.weights = 'absent.pt'", "no such file"]),
        ({"train_robust.weights": "own"}, ["whitened_cnn has no weights of its own"]),
        ({"models.custom.normalize": "imagnet"}, ["models.custom.normalize = 'imagnet'", "MEAN/STD"]),
        (
            {"train_standard.model": "custom", "train_standard.weights": "own"},
            ["models.custom.normalize = 'data'", "what they were trained with"],
        ),
        ({"train_standard.model": "py:/elsewhere/net.py:build"}, ["/elsewhere/net.py", "outside of the project"]),
    ],
)
def test_what_can_be_known_is_said_before_any_work(project, changes, words):
    write_params(changes)
    with pytest.raises(UserError) as raised:
        params.load()
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_checkpoint_cannot_name_code_outside_of_the_folder(project, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "code.py"
    elsewhere.write_text("from pathlib import Path\nPath('ran').touch()\n" + CODE)
    write_params({"model.name": "custom"})
    content = models.checkpoint(
        models.build("custom", channels=1, classes=list("0123456789"), origin="py:own_net.py:build", size=8)
    )
    for origin in (f"py:{elsewhere}:build", f"py:../{elsewhere.parent.name}/code.py:build"):
        content["model"]["origin"] = origin
        torch.save(content, "m.pt")
        with pytest.raises(UserError, match="outside of this folder and is not run"):
            models.load_checkpoint("m.pt")
    assert not Path("ran").exists()


def test_only_the_robust_model_s_stem_is_made_for_the_attack_and_for_the_budget_that_is_trained_with(digits):
    stems = {}
    for eps in (0.05, 0.1, 0.5):  # as far as largest_budget, 0.3
        knobs = params.load(overrides={"dataset": "digits", "eps": eps})
        for which in ("standard", "robust"):
            stems[which, eps] = training.new_model(knobs, which, digits).state_dict()["whiten.weight"]
    assert torch.equal(stems["standard", 0.05], stems["standard", 0.5])
    loudest = [
        float(stems[key].abs().max()) for key in (("standard", 0.05), *(("robust", eps) for eps in (0.05, 0.1, 0.5)))
    ]
    assert loudest == sorted(loudest, reverse=True) and len(set(loudest)) == 4
    knobs = params.load(overrides={"dataset": "digits", "eps": 0.3})
    assert torch.equal(training.new_model(knobs, "robust", digits).state_dict()["whiten.weight"], stems["robust", 0.5])
