"""What confidences are worth, against scikit-learn, pytorch-ood and a bootstrap, and by its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from stages.common import detection
from stages.common.detection import measures
from tests.detection.confidences import CASES, FAULTY, gaussians, tied_scores

SIX = ["auroc", "auroc_low", "auroc_high", "ap_id", "ap_ood", "fpr95"]


@pytest.mark.filterwarnings("ignore:AUTC is undefined")
@pytest.mark.parametrize("case", CASES)
def test_equal_to_the_oracles(case):
    from pytorch_ood.metrics import OODMetrics

    inside, outside = (np.asarray(side, dtype=np.float64) for side in CASES[case])
    figures = detection.evaluate(inside, outside)
    pooled, truth = np.r_[inside, outside], np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert list(figures) == SIX
    assert figures["auroc"] == pytest.approx(roc_auc_score(truth, pooled), abs=1e-12)
    assert figures["ap_id"] == pytest.approx(average_precision_score(truth, pooled), abs=1e-12)
    assert figures["ap_ood"] == pytest.approx(average_precision_score(1 - truth, -pooled), abs=1e-12)

    # There OOD is positive, here ID: both readings of the oracle are used
    labels = torch.from_numpy(np.where(truth == 1, 0, -1))
    as_outlier = OODMetrics().update(torch.from_numpy(-pooled), labels).compute()
    id_positive = OODMetrics().update(torch.from_numpy(pooled), -1 - labels).compute()
    assert figures["auroc"] == pytest.approx(float(as_outlier["AUROC"]), abs=2e-4)
    assert figures["fpr95"] == pytest.approx(float(id_positive["FPR95TPR"]), abs=2e-4)


@given(inside=tied_scores, outside=tied_scores)
@settings(max_examples=60, deadline=None)
def test_properties_of_the_figures(inside, outside):
    figures = detection.evaluate(inside, outside)
    assert all(0 <= value <= 1 for value in figures.values())
    assert figures["auroc_low"] <= figures["auroc"] <= figures["auroc_high"]
    swapped = detection.evaluate(outside, inside)
    negated = detection.evaluate(-np.array(outside), -np.array(inside))
    assert swapped["auroc"] == pytest.approx(1 - figures["auroc"])
    assert swapped["auroc_low"] == pytest.approx(1 - figures["auroc_high"])
    assert negated["auroc"] == pytest.approx(figures["auroc"])
    assert negated["ap_id"] == pytest.approx(figures["ap_ood"])
    bent = detection.evaluate(np.exp(inside), np.exp(outside))
    assert bent == figures


@given(inside=tied_scores, outside=tied_scores, more=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_properties_of_the_paired_test(inside, outside, more):
    id_b, ood_b = more.sample(inside, len(inside)), more.sample(outside, len(outside))
    test = detection.delong_test(inside, outside, id_b, ood_b)
    assert test["difference"] == pytest.approx(0, abs=1e-9)  # the same scores on other images
    assert test["p_value"] == pytest.approx(1, abs=1e-6)
    id_c = [value + more.randint(-3, 3) for value in inside]
    forth = detection.delong_test(inside, outside, id_c, ood_b)
    back = detection.delong_test(id_c, ood_b, inside, outside)
    assert -1 <= forth["low"] <= forth["difference"] <= forth["high"] <= 1
    assert 0 <= forth["p_value"] <= 1
    assert back["p_value"] == pytest.approx(forth["p_value"])
    assert back["low"] == pytest.approx(-forth["high"])
    a, b = detection.evaluate(inside, outside)["auroc"], detection.evaluate(id_c, ood_b)["auroc"]
    assert forth["difference"] == pytest.approx(a - b, abs=1e-9)


def resampled(inside, outside, statistic, count=1000):
    random = np.random.default_rng(1)
    draws = (
        (random.integers(len(inside), size=len(inside)), random.integers(len(outside), size=len(outside)))
        for _ in range(count)
    )
    return np.quantile([statistic(i, o) for i, o in draws], [0.025, 0.975])


def mann_whitney(inside, outside):
    return stats.mannwhitneyu(inside, outside, method="asymptotic").statistic / len(inside) / len(outside)


@pytest.mark.parametrize("shift", [0.2, 1.0, 2.0])
def test_interval_agrees_with_the_bootstrap(shift):
    inside, outside = gaussians(shift=shift)
    expected = resampled(inside, outside, lambda i, o: mann_whitney(inside[i], outside[o]), 400)
    assert detection.auroc_interval(inside, outside) == pytest.approx(expected, abs=0.012)


def test_delong_variance_is_the_definition():
    inside, outside = (side.round(1) for side in gaussians(30, 20))
    wins = (inside[:, None] > outside) + 0.5 * (inside[:, None] == outside)
    variance = wins.mean(1).var(ddof=1) / 30 + wins.mean(0).var(ddof=1) / 20
    low, high = detection.auroc_interval(inside, outside)
    logit_width = np.log(high / (1 - high)) - np.log(low / (1 - low))
    spread = np.sqrt(variance) / (wins.mean() * (1 - wins.mean()))
    assert logit_width == pytest.approx(2 * 1.959964 * spread, rel=1e-5)


def test_interval_covers_the_truth_as_often_as_it_says():
    truth = stats.norm.cdf(1 / np.sqrt(2))
    intervals = np.array([detection.auroc_interval(*gaussians(60, 30, seed=seed)) for seed in range(400)])
    assert 0.92 <= np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])) <= 0.98


def test_degenerate_intervals_are_wide_rather_than_narrow():
    assert detection.auroc_interval([1.0], [0.0]) == pytest.approx((0.025, 1))  # one success in one trial
    assert detection.auroc_interval([0.0], [1.0]) == pytest.approx((0, 0.975))
    assert detection.auroc_interval(np.arange(10, 20), np.arange(10)) == pytest.approx((0.025**0.1, 1))
    low, high = detection.auroc_interval(np.zeros(100), np.zeros(100))
    assert low < 0.42
    assert high > 0.58
    narrow = detection.auroc_interval(*gaussians(), confidence=0.5)
    wide = detection.auroc_interval(*gaussians(), confidence=0.99)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_paired_test_agrees_with_the_bootstrap():
    id_a, ood_a = gaussians()
    noise_id, noise_ood = gaussians(shift=0, seed=5)
    id_b, ood_b = id_a + 0.7 * noise_id, ood_a + 0.7 * noise_ood
    test = detection.delong_test(id_a, ood_a, id_b, ood_b)
    expected = resampled(
        id_a, ood_a, lambda i, o: mann_whitney(id_a[i], ood_a[o]) - mann_whitney(id_b[i], ood_b[o]), 400
    )
    assert (test["low"], test["high"]) == pytest.approx(expected, abs=0.012)
    assert (test["p_value"] < 0.05) == (test["low"] > 0 or test["high"] < 0)


def test_paired_test_rejects_as_often_as_it_says():
    random = np.random.default_rng(0)
    p_values = []
    for _ in range(400):
        inside, outside = random.normal(1, 1, (60, 1)), random.normal(0, 1, (40, 1))
        a, b = (inside + random.normal(size=(60, 2))).T, (outside + random.normal(size=(40, 2))).T
        p_values.append(detection.delong_test(a[0], b[0], a[1], b[1])["p_value"])
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.08


def test_paired_test_without_a_variance():
    same = detection.delong_test([2, 3], [0, 1], [2, 3], [0, 1])
    assert same["difference"] == 0
    assert same["p_value"] == 1
    assert same["low"] < 0 < same["high"]  # four images cannot show that two perfect scores are equal
    opposite = detection.delong_test(np.arange(50, 100), np.arange(50), np.arange(50), np.arange(50, 100))
    assert opposite["difference"] == 1
    assert opposite["p_value"] < 1e-6
    one = detection.delong_test([1], [0], [0], [1])
    assert one["p_value"] > 0.1


@pytest.mark.parametrize(("inside", "outside", "message"), FAULTY)
def test_faulty_scores_are_named(inside, outside, message):
    for function in (detection.evaluate, detection.auroc, detection.auroc_interval, measures.balanced):
        with pytest.raises(ValueError, match=message):
            function(inside, outside)


def test_paired_test_needs_the_same_images():
    with pytest.raises(ValueError, match="same images"):
        detection.delong_test([1, 2], [0], [1], [0])


@pytest.mark.parametrize("case", CASES)
def test_balanced_figures_are_those_of_sets_of_equal_size(case):
    """Weights do what repeating each image as often as the other set is large would do."""
    inside, outside = (np.asarray(side, dtype=np.float64) for side in CASES[case])
    many = np.repeat(inside, len(outside)), np.repeat(outside, len(inside))
    figures, repeated = measures.balanced(inside, outside), detection.evaluate(*many)
    assert figures["ap_id_balanced"] == pytest.approx(repeated["ap_id"], abs=1e-9)
    assert figures["ap_ood_balanced"] == pytest.approx(repeated["ap_ood"], abs=1e-9)
    thresholds = np.unique(np.r_[inside, outside, np.inf])
    accuracies = [((inside >= t).mean() + (outside < t).mean()) / 2 for t in thresholds]
    assert figures["detection_accuracy"] == pytest.approx(max(accuracies), abs=1e-12)
    assert detection.auroc(inside, outside) == detection.evaluate(inside, outside)["auroc"]


@given(val=tied_scores, inside=tied_scores, outside=tied_scores, accept=st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_threshold_accepts_its_share_of_the_set_that_made_it(val, inside, outside, accept):
    rates = measures.at_threshold(val, inside, outside, accept=accept)
    own = measures.at_threshold(val, val, outside, accept=accept)
    assert own["id_accepted"] >= accept - 1e-12
    higher = [t for t in set(val) if (np.array(val) >= t).mean() >= accept]
    assert rates == {
        "id_accepted": float((np.array(inside) >= max(higher)).mean()),
        "ood_accepted": float((np.array(outside) >= max(higher)).mean()),
    }


def test_a_threshold_set_on_the_test_images_gives_fpr95():
    inside, outside = gaussians()
    rates = measures.at_threshold(inside, inside, outside, accept=0.95)
    assert rates["ood_accepted"] == detection.evaluate(inside, outside)["fpr95"]
