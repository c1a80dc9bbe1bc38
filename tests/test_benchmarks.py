"""The benchmarks run, and both sides of each compute the same thing. Times are never asserted."""

import torch

from benchmarks import autoattack, ood, sweep, time_to_accuracy, training
from stages.common import images, models


def test_sweep_predicts_what_its_peers_predict():
    rows = sweep.measure(quick=True)
    assert rows.keys() == {"torchattacks", "foolbox"}
    assert all(row["equal"] == 1 and row["ratio"] > 0 for row in rows.values())


def test_training_reports_both_sides():
    found = training.measure(quick=True)
    assert all(value > 0 for value in found.values())
    assert found["ratio"] == found["ours_images_s"] / found["peer_images_s"]


def test_both_training_sides_see_the_same_images():
    train, _ = training.data(quick=True)
    pictures = training.Pictures(train, translate=0)
    torch.manual_seed(0)
    for index in range(20):
        seen, label = pictures[index]
        whole = images.to_float(train.images[index : index + 1])[0]
        assert label == train.labels[index]
        assert torch.allclose(seen, whole) or torch.allclose(seen, whole.flip(2))


def test_ood_scores_rank_as_pytorch_ood_s():
    row = ood.measure(quick=True)
    assert row["lowest_rank_correlation"] > 0.999 and row["ratio"] > 0


def test_both_recipes_reach_the_goal():
    row = time_to_accuracy.measure(quick=True)
    assert min(row["ours_accuracy"], row["study_accuracy"]) >= time_to_accuracy.GOAL and row["ratio"] > 0


def test_autoattack_breaks_what_no_gradient_protects(digits):
    """An untrained net's few right answers fall to a budget of 0.3, and none does to a budget of almost nothing."""
    torch.manual_seed(0)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8]).eval()
    right = images.predictions(model, digits.images) == digits.labels
    few = digits.take(right.nonzero().squeeze(1)[:6])
    assert autoattack.autoattack(model, few, 0.3, 0) == 0
    assert autoattack.restarted(model, few, 0.3, 5, 2, 0) == 0
    assert autoattack.restarted(model, few, 1e-9, 2, 2, 0) == 1
