"""What a clean model is worth on a whole set: the same whatever the batches, and as others count it."""

import sys
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score
from torch import nn

from stages.common import artifacts, evaluation, models
from stages.common.errors import UserError
from stages.common.images import ImageSet


class Reads(nn.Module):
    """Takes each image for the class that its first pixel names, of ten."""

    def forward(self, x):
        return nn.functional.one_hot((x[:, 0, 0, 0] * 255).round().long(), 10).float()


def read_as(answers, labels):
    """A set of these labels, each of whose images `Reads` takes for its answer."""
    pixels = torch.tensor(answers, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ImageSet(pixels, torch.tensor(labels), list("0123456789"))


answers_and_labels = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=80)


@given(answers_and_labels)
def test_accuracies_are_those_of_scikit_learn(pairs):
    answers, labels = (list(side) for side in zip(*pairs, strict=True))
    image_set = read_as(answers, labels)
    accuracy, balanced = evaluation.accuracies(Reads(), image_set)
    assert accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of answers that are no label
        assert balanced == pytest.approx(balanced_accuracy_score(labels, answers))
    assert evaluation.accuracy(Reads(), image_set) == accuracy


@given(st.lists(st.integers(0, 9), min_size=1, max_size=80))
def test_chance_is_the_share_of_the_majority(labels):
    """What the best constant answer gets: more than one in K wherever classes differ in size."""
    constant = [evaluation.accuracies(Reads(), read_as([answer] * len(labels), labels)) for answer in range(10)]
    assert evaluation.chance(torch.tensor(labels)) == max(accuracy for accuracy, _ in constant)
    present = len(set(labels))
    assert max(balanced for _, balanced in constant) == pytest.approx(1 / present)
    assert evaluation.chance(torch.tensor(labels)) >= 1 / present


class Watched(Reads):
    """With statistics that move in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x):
        self.norm(x)
        return super().forward(x)


def test_predictions_come_in_order_in_batches_and_leave_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 32)
    model = Watched().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    answers = [i * i % 10 for i in range(75)]
    predicted = evaluation.predictions(model, read_as(answers, answers).images)
    assert predicted.tolist() == answers and predicted.dtype == torch.int64
    assert model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert evaluation.predictions(model, torch.empty(0, 1, 2, 2, dtype=torch.uint8)).tolist() == []


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """Write both checkpoints for two classes of RGB images, each with changes of its own."""
    monkeypatch.chdir(tmp_path)

    def write(**changes):
        for name in artifacts.MODELS:
            torch.manual_seed(len(name))
            built = {"channels": 3, "classes": ["cat", "dog"]} | changes.get(name, {})
            content = models.checkpoint(models.build("simple_cnn", **built))
            artifacts.write_checkpoint(artifacts.CHECKPOINTS / f"{name}.pt", content)

    return write


CPU = torch.device("cpu")
PETS = ImageSet(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.tensor([0, 1]), ["cat", "dog"])


def test_both_models_are_loaded_by_name_in_eval_mode(checkpoints):
    checkpoints()
    both = evaluation.load_both(PETS, CPU)
    assert list(both) == ["standard", "robust"] and not any(model.training for model in both.values())
    for name, model in both.items():
        stored = artifacts.read_checkpoint(artifacts.CHECKPOINTS / f"{name}.pt")["state"]
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", artifacts.MODELS)
@pytest.mark.parametrize("change", [{"classes": ["cat", "cow"]}, {"classes": ["dog", "cat"]}, {"channels": 1}], ids=str)
def test_a_model_of_another_data_set_is_refused(checkpoints, name, change):
    checkpoints(**{name: change})
    with pytest.raises(UserError, match=rf"{name}\.pt.*another data set.*dvc repro"):
        evaluation.load_both(PETS, CPU)


@pytest.mark.parametrize("name", artifacts.MODELS)
def test_a_missing_model_is_named(checkpoints, name):
    checkpoints()
    (artifacts.CHECKPOINTS / f"{name}.pt").unlink()
    with pytest.raises(UserError, match=rf"{name}\.pt is missing.*dvc repro"):
        evaluation.load_both(PETS, CPU)
