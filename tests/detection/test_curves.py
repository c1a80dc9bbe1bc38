"""Curves: the areas under them against scikit-learn and pytorch-ood, and what thinning leaves of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from stages.common.detection.curves import pr_curve, roc_curve, thin
from tests.detection.confidences import CASES, FAULTY, gaussians, tied_scores


@pytest.mark.filterwarnings("ignore:AUTC is undefined")
@pytest.mark.parametrize("case", CASES)
def test_areas_equal_the_oracles(case):
    from pytorch_ood.metrics import OODMetrics

    inside, outside = (np.asarray(side, dtype=np.float64) for side in CASES[case])
    pooled, truth = np.r_[inside, outside], np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    labels = torch.from_numpy(np.where(truth == 1, 0, -1))
    oracle = OODMetrics().update(torch.from_numpy(-pooled), labels).compute()  # its AUPR is the trapezoid
    recall, precision = pr_curve(inside, outside)
    assert np.trapezoid(precision, recall) == pytest.approx(float(oracle["AUPR-IN"]), abs=2e-4)
    fpr, tpr = roc_curve(inside, outside)
    assert np.trapezoid(tpr, fpr) == pytest.approx(roc_auc_score(truth, pooled), abs=1e-12)


@given(inside=tied_scores, outside=tied_scores)
@settings(max_examples=60, deadline=None)
def test_a_curve_has_a_point_for_each_threshold(inside, outside):
    fpr, tpr = roc_curve(inside, outside)
    thresholds = sorted({*inside, *outside}, reverse=True)
    rates = [[np.mean(np.array(side) >= t) for t in thresholds] for side in (outside, inside)]
    assert [fpr.tolist(), tpr.tolist()] == [[0, *rates[0]], [0, *rates[1]]]
    recall, precision = pr_curve(inside, outside)
    assert (recall[0], precision[0], recall[-1]) == (0, 1, 1)
    accepted = [np.array(rate) * size for rate, size in zip(rates, (len(outside), len(inside)), strict=True)]
    assert recall[1:].tolist() == rates[1]
    assert precision[1:] == pytest.approx(accepted[1] / sum(accepted), abs=1e-12)


@pytest.mark.parametrize(("inside", "outside", "message"), FAULTY)
def test_faulty_scores_give_no_curve(inside, outside, message):
    for curve in (roc_curve, pr_curve):
        with pytest.raises(ValueError, match=message):
            curve(inside, outside)


@pytest.mark.parametrize("decimals", [None, 1, 2])
@given(
    seed=st.integers(0, 999),
    shift=st.floats(-3, 4),
    id_size=st.sampled_from([1, 7, 400, 4000]),
    ood_size=st.sampled_from([1, 90, 2000]),
)
@settings(max_examples=25, deadline=None)
def test_thin_keeps_ends_and_area(decimals, seed, shift, id_size, ood_size):
    inside, outside = gaussians(id_size, ood_size, shift=shift, seed=seed)
    if decimals is not None:
        inside, outside = inside.round(decimals), outside.round(decimals)
    for curve in (roc_curve, pr_curve):
        x, y = curve(inside, outside)
        thin_x, thin_y = thin(x, y)
        assert len(thin_x) == len(thin_y) <= 500
        assert (thin_x[0], thin_y[0], thin_x[-1], thin_y[-1]) == (x[0], y[0], x[-1], y[-1])
        assert set(zip(thin_x, thin_y, strict=True)) <= set(zip(x, y, strict=True))
        assert (np.diff(thin_x) >= 0).all()
        assert np.trapezoid(thin_y, thin_x) == pytest.approx(np.trapezoid(y, x), abs=1e-3)


def test_thin_follows_a_jagged_line():
    x, y = np.linspace(0, 1, 20_000), np.random.default_rng(0).random(20_000)
    thin_x, thin_y = thin(x, y)
    assert np.trapezoid(thin_y, thin_x) == pytest.approx(np.trapezoid(y, x), abs=1e-3)
    assert len(thin_x) <= 500


def test_thin_keeps_corners():
    x, y = thin(np.r_[np.zeros(900), np.linspace(0, 1, 900)], np.r_[np.linspace(0, 1, 900), np.ones(900)])
    assert {(0, 0), (0, 1), (1, 1)} <= set(zip(x, y, strict=True))
    x, y = thin(np.zeros(900), np.zeros(900))
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 0, 0)
