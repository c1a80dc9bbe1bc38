"""What params.yaml allows is what the code knows: each list of names in the schema, and the table it stands for."""

import re
import typing

import pytest

from stages.common import adversary, class_names, corruptions, datasets, models, params
from stages.common.detection import detectors
from stages.common.errors import UserError
from stages.common.models import architectures
from stages.common.origin_names import CUSTOM
from stages.common.params import faults, schema
from tests.repository import ROOT


def names(section, key):
    """The names that the schema allows for a key."""
    return set(typing.get_args(section.model_fields[key].annotation))


def test_each_name_allowed_is_a_name_known():
    assert names(schema.TrainRobust, "attack") == set(adversary.METHODS)
    known = {*models.ARCHITECTURES, CUSTOM}
    assert names(schema.Model, "name") == known == set(schema.Models.model_fields)
    assert names(schema.WhitenedCNN, "activation") == set(architectures.ACTIVATIONS)
    assert names(schema.Keys, "dataset") == set(datasets.READERS) == set(schema.Datasets.model_fields)
    assert set(typing.get_args(schema.Detector)) == set(detectors.DETECTORS) - {"odin"}


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("train_robust.attack", adversary.METHODS),
        ("model.name", models.ARCHITECTURES),
        ("dataset", datasets.READERS),
        ("device", ("auto", "cpu", "cuda", "mps")),
        ("precision", ("auto", "float32", "bfloat16")),
        ("datasets.cifar10.prepare.ood_classes", class_names.CIFAR100),
        ("ood_attack.detectors", set(detectors.DETECTORS) - {"odin"}),
        ("corruption_sweep.kinds", corruptions.CORRUPTIONS),
    ],
)
def test_an_unknown_name_is_refused_with_all_that_are_known(key, known):
    listed = key.endswith(("classes", "detectors", "kinds"))
    with pytest.raises(UserError) as raised:
        params.load(ROOT / "params.yaml", overrides={key: ["wrong"] if listed else "wrong"})
    assert re.search(rf"{key}(\.0)? = 'wrong'", str(raised.value))
    assert all(name in str(raised.value) for name in known)


def test_every_architecture_is_built_from_its_section_alone():
    """What stands below models.<name>, but for the rates, is what the architecture takes."""
    for name in models.ARCHITECTURES:
        knobs = params.load(ROOT / "params.yaml", overrides={"model.name": name})
        options = knobs.model_of("standard").section.model_dump(exclude={"learning_rate", "filter_rate"})
        assert models.build(name, channels=1, classes=["a", "b"], **options).recipe["name"] == name


def test_sets_refused_beside_a_data_set_are_sets_that_there_are():
    assert faults.FOREIGN.keys() <= datasets.READERS.keys() and faults.CLASSES.keys() <= datasets.READERS.keys()
    assert {name for refused in faults.FOREIGN.values() for name in refused} <= datasets.EXTRA.keys()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"targeted_sweep.target": "mug"}, "targeted_sweep.target = 'mug': allowed are the classes learnt, cat, dog"),
        ({"datasets.folder.target": "mug"}, "datasets.folder.target = 'mug': allowed are the classes learnt, cat, dog"),
        ({"ood_eval.neighbours": 41}, "ood_eval.neighbours = 41: allowed is a whole number from 1 to 40"),
        ({"ood_eval.guides": 50}, "ood_eval.guides = 50: allowed is a whole number from 1 to 40"),
        ({}, None),
    ],
)
def test_what_the_data_do_not_have_is_known_as_soon_as_they_are_read(changes, words):
    given = {"dataset": "folder", "ood_eval.neighbours": 40} | changes
    knobs = params.load(ROOT / "params.yaml", overrides=given)
    found = faults.found_in_data(knobs, ["cat", "dog"], 40)
    assert [line.removesuffix(", the training images") for line in found] == ([words] if words else [])
    assert faults.found_in_data(knobs, ["cat", "dog", "mug"], 50) == []
