"""params.yaml is checked whole: one line for each fault, with the key, the value and what is allowed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from dvc.utils.serialize import modify_yaml

from stages.common import params
from stages.common.errors import UserError
from tests.repository import ROOT

SHIPPED = ROOT / "params.yaml"


def load(changes):
    return params.load(SHIPPED, overrides=changes)


def written(folder, change=None, *, append=""):
    """The shipped file in `folder` with other text in it: (old, new) in place of one another, or more at its end."""
    text = SHIPPED.read_text(encoding="utf-8") + append
    if change:
        assert change[0] in text
        text = text.replace(*change, 1)
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path):
    """The message that the file is refused with: one line."""
    with pytest.raises(UserError) as raised:
        params.load(path)
    assert "\n" not in str(raised.value) and str(raised.value).startswith(str(path))
    return str(raised.value)


def test_the_shipped_file_is_sound_and_each_data_set_has_its_section():
    assert params.load(SHIPPED).data.target == "horse"
    assert load({"dataset": "digits"}).data.target == "3"
    assert load({"model.name": "resnet18"}).model_of("robust").section.width == 64


@pytest.mark.parametrize(
    ("given", "read"), [("8/255", 8 / 255), ("1e-05", 1e-5), (1e-5, 1e-5), (" 1 / 4 ", 0.25), (0, 0.0), (1, 1.0)]
)
def test_numbers_as_people_write_them(given, read):
    assert load({"eps": given}).eps == read


def test_the_budget_is_the_data_sets_own_unless_one_is_named():
    own = {name: load({"dataset": name}).eps for name in ("cifar10", "digits", "folder", "torchvision")}
    assert own == {"cifar10": 0.05, "digits": 0.15, "folder": 8 / 255, "torchvision": 8 / 255}
    assert load({"datasets.cifar10.eps": "1/4"}).eps == 0.25
    assert load({"datasets.digits.eps": "1/4"}).eps == 0.05  # of another set
    assert load({"dataset": "digits", "eps": 0}).eps == 0  # a budget too, and not an empty one


def test_class_names_may_be_numbers():
    chosen = load({"datasets.digits.prepare.ood_classes": [8, 9]})
    assert chosen.datasets.digits.prepare.ood_classes == ["8", "9"]


def test_budgets_are_sorted():
    assert load({"fgsm_sweep.epsilons": ["8/255", 0.3, 0]}).fgsm_sweep.epsilons == [0, 8 / 255, 0.3]


BAD = [
    ("eps", -0.1, "a number from 0 to 1"),
    ("eps", 1.5, "a number from 0 to 1"),
    ("eps", "x", "8/255"),
    ("eps", "1/0", "8/255"),
    ("eps", True, "a number"),
    ("datasets.digits.eps", None, "a number"),
    ("eps", float("nan"), "a number"),
    ("seed", 0.5, "a whole number"),
    ("dataset", "cifar", "'digits'"),
    ("device", "gpu", "'cuda'"),
    ("model.name", "vgg", "'resnet18'"),
    ("model", 3, "keys"),
    ("models.whitened_cnn.widths", [], "at least one"),
    ("models.resnet18.width", 7, "8"),
    ("training.momentum", 1, "below 1"),
    ("train_standard.label_smoothing", 1, "below 1"),
    ("train_robust.attack", "autoattack", "'trades'"),
    ("train_robust.steps", 0, "from 1"),
    ("train_robust.noise", -1, "from 0"),
    ("precision", "float16", "'bfloat16'"),
    ("models.whitened_cnn.filter_rate", 0, "above 0"),
    ("train_robust.adversarial_fraction", 0, "above 0"),
    ("fgsm_sweep.epsilons", [], "at least one"),
    ("fgsm_sweep.epsilons", 0.1, "a list"),
    ("fgsm_sweep.epsilons", [0.1, 0.1], "once"),
    ("datasets.cifar10.train_robust.epochs", 0, "from 1"),
    ("datasets.cifar10.training.early_size", 7, "from 8 to 512"),
    ("datasets.cifar10.training.flip", "yes", "true or false"),
    ("datasets.cifar10.prepare.ood_split", "all", "'both'"),
    ("datasets.cifar10.prepare.ood_classes", ["bottle", "bottle"], "once"),
    ("datasets.digits.prepare.ood_classes", list("012456789"), "at least"),
    ("datasets.cifar10.target", "bottle", "airplane"),
    ("targeted_sweep.target", "unicorn", "horse"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_a_bad_value_gives_one_line_with_key_value_and_what_is_allowed(key, value, allowed):
    with pytest.raises(UserError) as raised:
        load({key: value})
    line = str(raised.value)
    assert "\n" not in line and allowed in line
    assert re.search(rf"{re.escape(key)}\S* = ", line)
    assert repr(value) in line or repr(value).strip("[]") in line


def test_an_unknown_class_is_named_alone():
    with pytest.raises(UserError, match=r"ood_classes = 'cup_board': allowed are apple"):
        load({"datasets.cifar10.prepare.ood_classes": ["bottle", "cup_board"]})


def test_unknown_and_missing_keys_are_told_apart(tmp_path):
    assert "epz = 1: unknown key" in refusal(written(tmp_path, append="\nepz: 1\n"))
    assert "ood_eval.neighbours is missing" in refusal(written(tmp_path, ("  neighbours: 50", "  # none")))


def test_each_fault_has_a_line():
    with pytest.raises(UserError) as raised:
        load({"eps": 2, "seed": -1})
    assert len(str(raised.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no keys"), ("eps: [", "not YAML"), ("- 1", "no keys"), ("eps: *b", "not YAML"), ("\0", "not YAML")],
)
def test_files_that_are_no_params(tmp_path, text, words):
    (tmp_path / "params.yaml").write_text(text)
    assert words in refusal(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"eps: \xff")
    assert "not YAML" in refusal(tmp_path / "params.yaml")
    assert "missing" in refusal(tmp_path / "absent.yaml")


# Overrides


def test_overrides_stand_in_place_of_the_files_values_and_of_no_others():
    changed = load({"models.whitened_cnn.widths": [8], "eps": "8/255", "datasets.digits.train_robust.epochs": 3})
    wanted = params.load(SHIPPED).model_dump(by_alias=True)
    wanted["models"]["whitened_cnn"]["widths"] = [8]
    wanted["eps"] = 8 / 255
    wanted["datasets"]["digits"]["train_robust"]["epochs"] = 3
    assert changed.model_dump(by_alias=True) == wanted
    assert load({}) == load(None) == params.load(SHIPPED)


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("epz", "epz = 3"),
        ("models.whitened_cnn.width", "models.whitened_cnn.width = 3"),
        ("modls.whitened_cnn.widths", "modls = "),
        ("training.label_smoothing", "training.label_smoothing = 3"),
    ],
)
def test_an_override_of_an_unknown_key_is_refused_by_its_name(key, named):
    with pytest.raises(UserError, match=rf"{re.escape(named)}.*: unknown key"):
        load({key: 3})


def test_an_override_below_a_value_is_refused():
    with pytest.raises(UserError, match=r"eps\.half: eps has no keys"):
        load({"eps.half": 3})


@pytest.mark.parametrize(
    ("key", "value", "change"),
    [
        ("eps", "1/0", ("\neps:   ", "\neps: 1/0 ")),
        ("models.whitened_cnn.widths", [8, 0], ("widths: [48, 192, 384]", "widths: [8, 0]")),
        ("targeted_sweep.target", "unicorn", ("  target:    ", "  target: unicorn  ")),
    ],
)
def test_an_override_is_checked_like_the_files_value(tmp_path, key, value, change):
    in_file = refusal(written(tmp_path, change)).removeprefix(f"{tmp_path / 'params.yaml'}")
    with pytest.raises(UserError) as raised:
        load({key: value})
    assert str(raised.value).removeprefix(str(SHIPPED)) == in_file


# Beside the data that prepare has written


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A project for a user's own images, and a way to say what prepare wrote of them."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path, ("dataset: cifar10", "dataset: folder"))

    def write(content):
        Path("metrics").mkdir(exist_ok=True)
        Path("metrics/data.json").write_text(content if isinstance(content, str) else json.dumps(content))

    return write


OWN = {"dataset": "folder", "classes": ["cat", "dog"], "sizes": {"train": 60, "val": 7}}


def test_what_fits_the_prepared_data_is_read_as_without_them(prepared):
    prepared(OWN | {"fingerprint": "0" * 16})
    assert params.load_prepared() == params.load()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "metrics/data.json is missing"),
        ("", "metrics/data.json is damaged"),
        ('{"dataset": "folder", "cla', "metrics/data.json is damaged"),
        ([OWN], "metrics/data.json is damaged"),
        (OWN | {"sizes": {"val": 7}}, "metrics/data.json is damaged"),
        (OWN | {"classes": "cat"}, "metrics/data.json is damaged"),
        (OWN | {"dataset": "digits"}, "is of digits, params.yaml is for folder"),
    ],
)
def test_without_data_of_this_set_one_line_says_what_to_run(prepared, content, words):
    if content is not None:
        prepared(content)
    with pytest.raises(UserError) as raised:
        params.load_prepared()
    assert words in str(raised.value) and "dvc repro" in str(raised.value) and "\n" not in str(raised.value)


def test_what_the_prepared_data_do_not_have_is_refused_with_a_line_for_each(prepared):
    prepared(OWN | {"sizes": {"train": 40}})
    written(Path(), ("dataset: cifar10", "dataset: folder\n"))
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("  target:    ", "  target: mug  ", 1))
    with pytest.raises(UserError) as raised:
        params.load_prepared()
    first, second = str(raised.value).splitlines()
    assert first == "params.yaml: targeted_sweep.target = 'mug': allowed are the classes learnt, cat, dog"
    assert second.strip().startswith("params.yaml: ood_eval.neighbours = 50: allowed is a whole number from 1 to 40")


# YAML 1.2, which is what DVC reads: the same values here as there


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [("eps: 1e-05 ", "eps", 1e-5), ("eps: 8/255 ", "eps", 8 / 255), ("seed: 010 ", "seed", 10)],
)
def test_numbers_are_those_of_yaml_1_2(tmp_path, text, key, value):
    old, text = {"eps": "\neps:   ", "seed": "\nseed: 0 "}[key], f"\n{text}"
    assert getattr(params.load(written(tmp_path, (old, text))), key) == value


@pytest.mark.parametrize("word", ["no", "yes", "off", "on", "y", "NO"])
def test_a_class_may_be_called_no(tmp_path, word):
    path = written(tmp_path, ("  folder:\n    target:", f"  folder:\n    target: {word}"))
    assert params.load(path).datasets.folder.target == word
    path = written(tmp_path, ("ood_classes:     ", f"ood_classes: [{word}, cup]"))
    assert params.load(path).datasets.folder.prepare.ood_classes == [word, "cup"]
    said = refusal(written(tmp_path, ("undo_overfitting: true", f"undo_overfitting: {word}")))
    assert f"train_robust.undo_overfitting = '{word}': allowed is true or false" in said


@pytest.mark.parametrize(
    ("change", "append", "key"),
    [
        (None, "\neps: 0.3\n", "eps"),
        (None, "\ndatasets: {}\n", "datasets"),
        (("  momentum: 0.85", "  momentum: 0.85\n  momentum: 0.9"), "", "momentum"),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_its_name(tmp_path, change, append, key):
    assert f'duplicate key "{key}"' in refusal(written(tmp_path, change, append=append))


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.mkdir [owned]", "!Foo {}", "!!binary aGk=", "!!set {a}", "!!timestamp x", "2024-01-01"],
)
def test_tags_run_nothing_and_are_refused(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    assert "eps" in refusal(written(tmp_path, ("\neps:   ", f"\neps: {value} ")))
    assert not Path("owned").exists()


@pytest.mark.parametrize("value", ["!!float abc", "!!int x", "!!bool maybe"])
def test_a_tag_that_does_not_fit_its_value_is_refused(tmp_path, value):
    assert "not YAML" in refusal(written(tmp_path, ("\neps:   ", f"\neps: {value} ")))


def test_dvc_s_own_way_of_writing_the_file_changes_the_line_that_was_set_and_no_other(tmp_path):
    """`dvc exp run -S` reads params.yaml and writes it again: lists, quotes and empty values stand as it does."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    with modify_yaml(tmp_path / "params.yaml") as content:
        content["seed"] = 7
    before, after = ((folder / "params.yaml").read_text().splitlines() for folder in (ROOT, tmp_path))
    assert [line for line in after if line not in before] == [
        next(line for line in after if line.startswith("seed: 7"))
    ]
    assert len(before) == len(after)
