"""Calibration as Guo 2017 defines it, as scikit-learn bins it, and of models that are calibrated by their making."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from stages.common import calibration


def drawn(seed, count, classes, scale=3.0):
    """Logits, and labels drawn from their softmax: a model that is calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    labels = torch.multinomial(logits.double().softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


def sure(confidences, correct):
    """Probabilities of two classes and labels, with these confidences, and right where `correct`."""
    confidences = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([confidences, 1 - confidences], dim=1), 1 - torch.tensor(correct).long()


samples = st.tuples(
    st.integers(0, 2**31), st.integers(1, 80), st.integers(1, 6), st.sampled_from([0.1, 1.0, 5.0, 50.0])
)


@settings(max_examples=50, deadline=None)
@given(samples)
def test_rows_and_error_are_those_of_the_definition_and_of_scikit_learn(case):
    logits, labels = drawn(*case)
    labels = labels.roll(1)  # nor need it be calibrated
    probabilities = calibration.probabilities_of(logits)
    rows = calibration.reliability(probabilities, labels)
    confidences = [max(row) for row in probabilities.tolist()]
    correct = [row.index(max(row)) == label for row, label in zip(probabilities.tolist(), labels.tolist(), strict=True)]
    gaps, numbers = 0.0, []
    for m in range(1, 16):
        members = [i for i, c in enumerate(confidences) if (m - 1) / 15 < c <= m / 15]
        if members:
            gaps += abs(sum(correct[i] for i in members) - sum(confidences[i] for i in members))
            numbers.append((m, len(members)))
    assert [(row["bin"], row["count"]) for row in rows] == numbers
    assert calibration.ece(probabilities, labels) == pytest.approx(gaps / len(labels), abs=1e-12)
    accuracies, means = calibration_curve(correct, np.minimum(confidences, 1), n_bins=15)
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracies.tolist())
    assert [row["confidence"] for row in rows] == pytest.approx(means.tolist())


@settings(max_examples=50, deadline=None)
@given(samples, st.randoms(use_true_random=False))
def test_properties(case, random):
    logits, labels = drawn(*case)
    probabilities = calibration.probabilities_of(logits)
    rows, error = calibration.reliability(probabilities, labels), calibration.ece(probabilities, labels)
    confidences, answers = probabilities.max(1)
    accuracy = float((answers == labels).double().mean())
    assert 0 <= error <= 1 and abs(accuracy - float(confidences.mean())) <= error + 1e-12
    assert sum(row["count"] for row in rows) == len(labels)
    assert sum(row["count"] * row["accuracy"] for row in rows) / len(labels) == pytest.approx(accuracy)
    for row in rows:
        assert (row["bin"] - 1) / 15 - 1e-12 <= row["confidence"] <= row["bin"] / 15 + 1e-12
        assert list(row) == ["bin", "confidence", "accuracy", "count"] and 0 <= row["accuracy"] <= 1
    images = torch.tensor(random.sample(range(len(labels)), len(labels)))
    classes = torch.tensor(random.sample(range(logits.shape[1]), logits.shape[1]))
    renamed = classes.argsort()[labels[images]]
    assert calibration.ece(probabilities[images][:, classes], renamed) == pytest.approx(error, abs=1e-12)
    assert calibration.ece(probabilities.repeat(3, 1), labels.repeat(3)) == pytest.approx(error, abs=1e-12)


def test_by_hand():
    """0.8 and right 3 times of 4, 0.9 and never: they are in the 12th bin and in the 14th."""
    probabilities, labels = sure([0.8] * 4 + [0.9] * 2, [True, True, True, False, False, False])
    rows = calibration.reliability(probabilities, labels)
    assert [(row["bin"], row["accuracy"], row["count"]) for row in rows] == [(12, 0.75, 4), (14, 0.0, 2)]
    assert [row["confidence"] for row in rows] == pytest.approx([0.8, 0.9])
    assert calibration.ece(probabilities, labels) == pytest.approx((4 * 0.05 + 2 * 0.9) / 6)
    certain = sure([1.0] * 4, [True, False, False, True])
    assert calibration.ece(*certain) == 0.5 and calibration.reliability(*certain)[0]["bin"] == 15
    assert calibration.ece(*sure([1.0] * 3, [True] * 3)) == 0


@pytest.mark.parametrize("edge", range(8, 15))
def test_an_edge_belongs_to_the_bin_below_it(edge):
    exact = float(Fraction(edge, 15))
    above = float(np.nextafter(exact, 1))
    rows = calibration.reliability(*sure([exact, above], [True, True]))
    assert [row["bin"] for row in rows] == [edge, edge + 1]


def test_a_calibrated_model_has_next_to_no_error_and_one_too_sure_of_itself_has():
    logits, labels = drawn(0, 20_000, 10)
    calibrated, surer, less_sure = (
        calibration.ece(calibration.probabilities_of(logits * by), labels) for by in (1, 3, 0.3)
    )
    assert calibrated < 0.012 and surer > 0.1 and less_sure > 0.1
    rows = calibration.reliability(calibration.probabilities_of(logits), labels)
    well_filled = [row for row in rows if row["count"] > 500]
    assert len(well_filled) > 8
    assert all(abs(row["accuracy"] - row["confidence"]) < 4 * (0.25 / row["count"]) ** 0.5 for row in well_filled)


def test_chance_keeps_the_error_of_a_calibrated_model_above_0_the_more_so_the_fewer_the_images():
    def mean_error(images):
        found = (drawn(seed, images, 10) for seed in range(20))
        return np.mean([calibration.ece(calibration.probabilities_of(logits), labels) for logits, labels in found])

    assert mean_error(100) > 3 * mean_error(5000) > 0


def test_the_softmax_is_float64_s():
    logits = torch.tensor([[20.0, 0.0]])
    assert logits.softmax(1)[0, 0] == 1
    found = calibration.probabilities_of(logits)
    assert found.dtype == torch.float64 and float(1 - found[0, 0]) == pytest.approx(np.exp(-20), rel=1e-6, abs=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_probabilities_of_less_precision_are_taken(dtype):
    logits, labels = drawn(1, 500, 10)
    exact = calibration.probabilities_of(logits)
    assert calibration.ece(exact.to(dtype), labels) == pytest.approx(calibration.ece(exact, labels), abs=0.01)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.ones(2), torch.tensor([0, 0]), r"must be float \(N, K\), N >= 1, got torch.float32 \(2,\)"),
        (torch.ones(2, 1).long(), torch.tensor([0, 0]), r"got torch.int64 \(2, 1\)"),
        (torch.ones(0, 2), torch.empty(0).long(), r"got torch.float32 \(0, 2\)"),
        (torch.ones(2, 1), torch.tensor([0]), r"labels must be int64 \(2,\), got torch.int64 \(1,\)"),
        (torch.ones(2, 1), torch.zeros(2), r"labels must be int64 \(2,\), got torch.float32"),
        (torch.ones(2, 1), torch.tensor([0, 1]), r"labels must lie in \[0, 1\), got \[0, 1\]"),
        (torch.ones(2, 1), torch.tensor([-1, 0]), r"got \[-1, 0\]"),
        (torch.tensor([[0.5, 0.5], [2.0, -1.0]]), torch.tensor([0, 0]), "1 of 2 rows .* probabilities_of"),
        (torch.tensor([[0.5, 0.6], [0.2, 0.2]]), torch.tensor([0, 0]), "2 of 2 rows"),
        (torch.tensor([[1.0005, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]), "1 of 2 rows"),
        (torch.tensor([[torch.nan, 1.0], [0.2, 0.8]]), torch.tensor([0, 0]), "1 of 2 rows"),
        (calibration.probabilities_of(torch.tensor([[torch.inf, 1.0]])), torch.tensor([0]), "1 of 1 rows"),
    ],
)
def test_faulty_arguments_are_named(probabilities, labels, message):
    for function in (calibration.reliability, calibration.ece):
        with pytest.raises(ValueError, match=message):
            function(probabilities, labels)
