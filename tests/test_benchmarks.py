"""The benchmarks run, and both sides of each compute the same thing. Times are never asserted."""

import torch

from benchmarks import sweep, training
from stages.common import images


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
