"""params.yaml is checked whole: one line for each fault, with the key, the value and what is allowed."""

import re
from pathlib import Path

import pytest
import yaml

from stages.common import params
from stages.common.errors import UserError

SHIPPED = Path(__file__).parents[1] / "params.yaml"


def load(tmp_path, **changes):
    content = yaml.safe_load(SHIPPED.read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        section = content
        for part in path:
            section = section[part]
        section.pop(last, None)
        if value is not ...:
            section[last] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return params.load(tmp_path / "params.yaml")


def test_the_shipped_file_is_sound_and_each_data_set_has_its_section(tmp_path):
    assert params.load(SHIPPED).data.target == "horse"
    assert load(tmp_path, dataset="digits").data.target == "3"
    assert load(tmp_path, model__name="resnet18").architecture.width == 64


@pytest.mark.parametrize(
    ("written", "read"), [("8/255", 8 / 255), ("1e-05", 1e-5), (" 1 / 4 ", 0.25), (0, 0.0), (1, 1.0)]
)
def test_numbers_as_people_and_yaml_write_them(tmp_path, written, read):
    assert load(tmp_path, eps=written).eps == read


def test_class_names_may_be_numbers(tmp_path):
    assert load(tmp_path, datasets__digits__prepare__ood_classes=[8, 9]).datasets.digits.prepare.ood_classes == [
        "8",
        "9",
    ]


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("eps", -0.1, "a number from 0 to 1"),
        ("eps", 1.5, "a number from 0 to 1"),
        ("eps", "x", "8/255"),
        ("eps", "1/0", "8/255"),
        ("eps", True, "a number"),
        ("eps", None, "a number"),
        ("eps", float("nan"), "a number"),
        ("seed", 0.5, "a whole number"),
        ("device", "gpu", "'cuda'"),
        ("model__name", "vgg", "'resnet18'"),
        ("model", 3, "keys"),
        ("models__whitened_cnn__widths", [], "at least one"),
        ("training__momentum", 1, "below 1"),
        ("train_robust__attack", "pgd", "'n-fgsm'"),
        ("train_robust__adversarial_fraction", 0, "above 0"),
        ("fgsm_sweep__epsilons", [], "at least one"),
        ("fgsm_sweep__epsilons", 0.1, "a list"),
        ("fgsm_sweep__epsilons", [0.1, 0.1], "once"),
        ("datasets__cifar10__training__early_size", 7, "from 8 to 64"),
        ("datasets__cifar10__training__flip", "yes", "true or false"),
        ("datasets__cifar10__prepare__ood_split", "all", "'both'"),
        ("datasets__cifar10__prepare__ood_classes", ["bottle", "bottle"], "once"),
        ("datasets__digits__prepare__ood_classes", list("012456789"), "at least"),
        ("datasets__cifar10__target", "bottle", "airplane"),
        ("targeted_sweep__target", "unicorn", "horse"),
    ],
)
def test_a_bad_value_gives_one_line_with_key_value_and_what_is_allowed(tmp_path, key, value, allowed):
    with pytest.raises(UserError) as raised:
        load(tmp_path, **{key: value})
    line = str(raised.value)
    assert "\n" not in line and allowed in line
    assert re.search(rf"{key.replace('__', '[.]')}\S* = ", line)
    assert repr(value) in line or repr(value).strip("[]") in line


def test_an_unknown_class_is_named_alone(tmp_path):
    with pytest.raises(UserError, match=r"ood_classes = 'cup_board': allowed are apple"):
        load(tmp_path, datasets__cifar10__prepare__ood_classes=["bottle", "cup_board"])


def test_unknown_and_missing_keys_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="epz = 1: unknown key"):
        load(tmp_path, epz=1)
    with pytest.raises(UserError, match=r"ood_eval\.neighbours is missing"):
        load(tmp_path, ood_eval__neighbours=...)


def test_each_fault_has_a_line(tmp_path):
    with pytest.raises(UserError) as raised:
        load(tmp_path, eps=2, seed=-1)
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(("text", "words"), [("", "no keys"), ("eps: [", "not YAML"), ("- 1", "no keys")])
def test_files_that_are_no_params(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="missing"):
        params.load(tmp_path / "absent.yaml")
