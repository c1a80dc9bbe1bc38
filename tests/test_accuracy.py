"""Intervals and tests of accuracies, against their definitions, all outcomes enumerated, and published examples."""

from math import comb, sqrt

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from stages.common import accuracy

levels = st.floats(0.01, 0.9999)
counts = st.integers(1, 2000).flatmap(lambda images: st.tuples(st.integers(0, images), st.just(images)))
masks = st.lists(st.booleans(), min_size=1, max_size=60)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def sample(count, images):
    """A sample with `count` right."""
    return torch.arange(images) < count


def paired(both, only_a, only_b, neither):
    """What two models have right, of images of these four kinds."""
    return np.repeat([[1, 1, 0, 0], [1, 0, 1, 0]], [both, only_a, only_b, neither], axis=1).astype(bool)


# The interval of one accuracy


@pytest.mark.parametrize(
    ("count", "images", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_the_interval_is_that_of_newcombe_s_examples(count, images, expected):
    """Newcombe 1998, Two-sided confidence intervals for the single proportion, method 3."""
    assert accuracy.interval(sample(count, images), 0.95) == pytest.approx(expected, abs=6e-5)


@settings(max_examples=50, deadline=None)
@given(counts, levels)
def test_the_ends_are_the_accuracies_that_the_score_test_just_does_not_reject(case, confidence):
    count, images = case
    low, high = accuracy.interval_of_count(count, images, confidence)
    quantile = stats.norm.isf((1 - confidence) / 2)
    for end in (low, high):
        if 0 < end < 1:
            deviation = sqrt(end * (1 - end) / images)
            assert abs(count / images - end) == pytest.approx(quantile * deviation, rel=1e-6, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(counts, levels, levels, st.integers(2, 5))
def test_properties_of_the_interval(case, confidence, other, times):
    count, images = case
    low, high = accuracy.interval_of_count(count, images, confidence)
    assert 0 <= low <= count / images <= high <= 1 and low < high
    assert (low == 0) == (count == 0) and (high == 1) == (count == images)
    of_wrong = accuracy.interval_of_count(images - count, images, confidence)
    assert of_wrong == pytest.approx((1 - high, 1 - low), abs=1e-12)
    of_more = accuracy.interval_of_count(times * count, times * images, confidence)
    assert low <= of_more[0] and of_more[1] <= high and of_more[1] - of_more[0] < high - low
    of_one_more_image = accuracy.interval_of_count(count, images + 1, confidence)
    assert of_one_more_image[0] <= low and of_one_more_image[1] < high
    narrow, wide = (accuracy.interval_of_count(count, images, level) for level in sorted((confidence, other)))
    assert wide[0] <= narrow[0] and narrow[1] <= wide[1]


@settings(max_examples=50, deadline=None)
@given(masks, levels)
def test_a_tensor_an_array_and_a_list_are_one_sample(mask, confidence):
    expected = accuracy.interval_of_count(sum(mask), len(mask), confidence)
    for same in (torch.tensor(mask), np.array(mask), mask, torch.tensor(mask[::-1])):
        assert accuracy.interval(same, confidence) == expected


def test_figures_are_the_accuracy_and_its_interval_by_name():
    low, high = accuracy.interval_of_count(3, 4, 0.9)
    found = accuracy.figures({"pgd": sample(3, 4)}, 0.9)
    assert found == {"pgd": 0.75, "pgd_low": low, "pgd_high": high} and type(found["pgd"]) is float


def test_the_interval_covers_as_often_as_it_says_on_average():
    """Each outcome weighed by how likely it is; the exact interval covers more, and is wider."""
    outcomes, truths = np.arange(51), np.linspace(0.05, 0.95, 181)[:, None]
    chances = stats.binom.pmf(outcomes, 50, truths)
    score = np.array([accuracy.interval_of_count(count, 50, 0.95) for count in outcomes])
    exact = np.array([stats.binomtest(count, 50).proportion_ci(0.95) for count in outcomes])
    coverage, of_exact = ((chances * ((e[:, 0] <= truths) & (truths <= e[:, 1]))).sum(1) for e in (score, exact))
    assert coverage.mean() == pytest.approx(0.95, abs=0.003) and coverage.min() > 0.93
    assert of_exact.mean() > coverage.mean() + 0.01 and (chances @ np.diff(exact - score) > 0).all()


def test_at_the_edge_the_interval_covers_what_is_said_of_it():
    """Where 0.18 of 1,000 images are expected right, one that is right makes it miss."""
    low, _ = accuracy.interval_of_count(1, 1000, 0.95)
    assert low == pytest.approx(0.000176, abs=1e-6)
    assert stats.binom.pmf(0, 1000, low - 1e-9) == pytest.approx(0.84, abs=0.005)


# The bound of a share


def at_least(count, images, share):
    """The probability of `count` or more of `images`."""
    return sum(comb(images, k) * share**k * (1 - share) ** (images - k) for k in range(count, images + 1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.data(), st.floats(1e-4, 0.5))
def test_at_the_bound_as_many_have_the_probability_alpha(images, data, alpha):
    count = data.draw(st.integers(1, images))
    bound = accuracy.clopper_pearson_lower(count, images, alpha)
    assert at_least(count, images, float(bound)) == pytest.approx(alpha, rel=1e-6)
    one_sided = stats.binomtest(count, images, alternative="greater").proportion_ci(1 - alpha)
    assert float(bound) == pytest.approx(one_sided.low, abs=1e-9)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_the_bound_is_above_the_truth_no_more_often_than_alpha(alpha):
    bounds = accuracy.clopper_pearson_lower(np.arange(31), 30, alpha)
    for truth in np.r_[np.linspace(0, 1, 101), bounds[1:] - 1e-9]:
        assert stats.binom.pmf(np.arange(31), 30, truth)[bounds > truth].sum() <= alpha


def test_bounds_of_many_counts_at_once_and_at_the_corners():
    bounds = accuracy.clopper_pearson_lower(torch.tensor([[0, 50], [99_000, 100_000]]), 100_000, 0.001)
    assert bounds.shape == (2, 2) and bounds[0, 0] == 0 and bounds.dtype == np.float64
    assert bounds[1, 1] == pytest.approx(
        0.001 ** (1 / 100_000), abs=1e-12
    )  # 3.8 deviations, the most that it certifies
    assert stats.norm.ppf(bounds[1, 1]) == pytest.approx(3.81, abs=0.01)  # deviations: the most that it certifies
    assert (np.diff(bounds.ravel()) > 0).all()


# Two models on the same images


@pytest.mark.parametrize(
    ("cells", "confidence", "low", "high", "digits"),
    [
        ((59, 6, 16, 80), 0.95, -0.1240, -0.0054, 4),  # Cavo 2012 in Fagerland, Lydersen and Laake 2017, chapter 8
        ((1, 1, 7, 12), 0.95, -0.517, -0.026, 3),  # Bentur 2009 in Fagerland, Lydersen and Laake 2014
        ((4, 9, 3, 16), 0.95, -0.027, 0.390, 3),  # Tango 1998, as the R package ratesci has it
        ((43, 0, 1, 0), 0.90, -0.096, 0.037, 3),  # the same
        ((565, 28, 25, 0), 0.90, -0.0148, 0.0247, 4),  # scoreci.mp(25, 28, 618) of the R package PropCIs
    ],
)
def test_the_paired_interval_is_that_of_published_examples(cells, confidence, low, high, digits):
    found = accuracy.mcnemar(*paired(*cells), confidence)
    assert (round(found["low"], digits), round(found["high"], digits)) == (low, high)


@pytest.mark.parametrize(("cells", "p"), [((59, 6, 16, 80), 0.052479), ((1, 1, 7, 12), 0.070312)])
def test_p_is_that_of_published_examples(cells, p):
    assert accuracy.mcnemar(*paired(*cells), 0.95)["p_value"] == pytest.approx(p, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30))
def test_p_is_the_share_of_all_tosses_that_are_as_uneven(only_a, only_b):
    tosses = only_a + only_b
    uneven = sum(comb(tosses, k) for k in range(tosses + 1) if abs(2 * k - tosses) >= abs(only_a - only_b))
    assert accuracy.mcnemar(*paired(3, only_a, only_b, 2), 0.95)["p_value"] == pytest.approx(uneven / 2**tosses)


def deviations(only_a, only_b, images, difference):
    """How many deviations the difference found is from `difference`, at the likeliest shares that differ by it."""

    def unlikeliness(of_b):
        shares = np.array([of_b + difference, of_b, 1 - 2 * of_b - difference]).clip(1e-300)
        return -(np.array([only_a, only_b, images - only_a - only_b]) * np.log(shares)).sum()

    bounds = max(0.0, -difference), (1 - difference) / 2
    of_b = optimize.minimize_scalar(unlikeliness, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x
    deviation = sqrt((2 * of_b + difference - difference**2) / images)
    return ((only_a - only_b) / images - difference) / deviation


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any), st.sampled_from([0.8, 0.95, 0.99]))
def test_the_ends_are_the_differences_that_the_score_test_just_does_not_reject(cells, confidence):
    """By a search for the likeliest shares, where the code has a formula."""
    found, quantile = accuracy.mcnemar(*paired(*cells), confidence), stats.norm.isf((1 - confidence) / 2)
    for end, side in (("low", 1), ("high", -1)):
        if abs(found[end]) < 1:
            assert deviations(cells[1], cells[2], sum(cells), found[end]) == pytest.approx(side * quantile, rel=1e-3)


@settings(max_examples=50, deadline=None)
@given(pairs, levels, levels)
def test_properties_of_the_paired_test(pair, confidence, other):
    a, b = np.array(pair).T
    forth, back = accuracy.mcnemar(a, b, confidence), accuracy.mcnemar(b, a, confidence)
    assert list(forth) == ["difference", "low", "high", "p_value"]
    assert forth["difference"] == pytest.approx(a.mean() - b.mean(), abs=1e-12)
    assert -1 <= forth["low"] <= forth["difference"] <= forth["high"] <= 1 and 0 < forth["p_value"] <= 1
    assert forth["low"] < forth["high"]
    swapped = {
        "difference": -back["difference"],
        "low": -back["high"],
        "high": -back["low"],
        "p_value": back["p_value"],
    }
    assert forth == swapped
    of_errors = accuracy.mcnemar(~a, ~b, confidence)
    assert (of_errors["low"], of_errors["p_value"]) == (back["low"], back["p_value"])
    narrow, wide = (accuracy.mcnemar(a, b, level) for level in sorted((confidence, other)))
    assert wide["low"] <= narrow["low"] + 1e-12 and narrow["high"] <= wide["high"] + 1e-12


@settings(max_examples=50, deadline=None)
@given(pairs, st.integers(1, 100), st.booleans())
def test_images_on_which_two_models_agree_leave_p_and_narrow_the_interval(pair, more, right):
    few = accuracy.mcnemar(*np.array(pair).T, 0.95)
    many = accuracy.mcnemar(*np.array(pair + [(right, right)] * more).T, 0.95)
    assert many["p_value"] == few["p_value"]
    assert many["high"] - many["low"] < few["high"] - few["low"]


@pytest.mark.parametrize("images", [1, 7, 1000])
def test_models_that_agree_on_all_and_on_no_image(images):
    """A few images cannot show that two models are the same: the interval is as wide as that of none right in N."""
    same = accuracy.mcnemar(sample(images // 2, images), sample(images // 2, images), 0.95)
    reach = accuracy.interval_of_count(0, images, 0.95)[1]
    assert (same["difference"], same["p_value"]) == (0, 1)
    assert (same["low"], same["high"]) == pytest.approx((-reach, reach), abs=1e-12)
    opposite = accuracy.mcnemar(sample(images, images), sample(0, images), 0.95)
    assert (opposite["difference"], opposite["high"]) == (1, 1)
    assert opposite["p_value"] == pytest.approx(2 / 2.0**images, abs=0)
    assert -1 < opposite["low"] < 1


@pytest.fixture(scope="module")
def outcomes():
    """All that two models can come to on 40 images: which of them only a, only b has right, and what is found."""
    images = 40
    cells = [(a, b) for a in range(images + 1) for b in range(images + 1 - a)]
    found = [accuracy.mcnemar(*paired(images - a - b, a, b, 0), 0.95) for a, b in cells]
    return np.array(cells), pd.DataFrame(found)


def test_the_paired_interval_covers_as_often_as_it_says(outcomes):
    """Whether the models differ much or little, and to one side or both: each outcome weighed by how likely it is."""
    cells, found = outcomes
    counts, coverage = np.column_stack([cells, 40 - cells.sum(1)]), []
    for of_a in (0.02, 0.05, 0.1, 0.2, 0.4):
        for of_b in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
            inside = found.low.le(of_a - of_b) & found.high.ge(of_a - of_b)
            chances = stats.multinomial.pmf(counts, 40, [of_a, of_b, 1 - of_a - of_b])
            coverage.append((chances * inside).sum())
    assert min(coverage) > 0.92 and 0.95 < np.mean(coverage) < 0.975


def test_the_exact_test_rejects_no_more_often_than_it_says_and_never_where_the_interval_has_0(outcomes):
    cells, found = outcomes
    rejected = found.p_value < 0.05
    assert not (rejected & (found.low <= 0) & (found.high >= 0)).any() and rejected.any()
    counts = np.column_stack([cells, 40 - cells.sum(1)])
    for of_each in (0.01, 0.05, 0.1, 0.25, 0.5):
        chances = stats.multinomial.pmf(counts, 40, [of_each, of_each, 1 - 2 * of_each])
        assert chances[rejected].sum() <= 0.05


# Class by class

images_of = st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=60)
PETS = ["cat", "dog", "bird", "fish"]


@settings(max_examples=50, deadline=None)
@given(images_of, levels)
def test_rows_are_the_intervals_of_each_class_that_has_images(images, confidence):
    labels, correct = (np.array(column) for column in zip(*images, strict=True))
    rows = accuracy.by_class(torch.tensor(labels), torch.tensor(correct), PETS, confidence)
    assert [row["class"] for row in rows] == [PETS[label] for label in sorted(set(labels))]
    expected = pd.DataFrame({"label": labels, "correct": correct}).groupby("label").correct
    assert [row["images"] for row in rows] == expected.count().tolist()
    assert [row["accuracy"] for row in rows] == pytest.approx(expected.mean().tolist())
    for row in rows:
        own = accuracy.interval(correct[labels == PETS.index(row["class"])], confidence)
        assert (row["low"], row["high"]) == own
    assert accuracy.worst(rows)["accuracy"] == pytest.approx(expected.mean().min())
    assert accuracy.by_class(labels[::-1], correct[::-1], PETS, confidence) == rows


def test_the_worst_class_is_named_and_the_first_of_two():
    labels, correct = [0, 0, 1, 1, 3, 3], [True, True, True, False, False, True]
    rows = accuracy.by_class(labels, correct, PETS, 0.95)
    assert [row["class"] for row in rows] == ["cat", "dog", "fish"] and accuracy.worst(rows) is rows[1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_a_cell_of_the_confusion_is_the_share_of_a_class_that_is_taken_for_another(images):
    labels, taken = (torch.tensor(column) for column in zip(*images, strict=True))
    cells = pd.DataFrame(accuracy.confusion(labels, taken, PETS)).pivot(index="class", columns="taken_for")["share"]
    for i, name in enumerate(PETS):
        of_class = taken[labels == i]
        expected = [float((of_class == j).double().mean()) if len(of_class) else 0 for j in range(len(PETS))]
        assert cells.loc[name, PETS].tolist() == pytest.approx(expected)


def test_cells_come_class_by_class():
    rows = list(accuracy.confusion([0, 0], [0, 1], PETS[:2]))
    assert [list(row.values()) for row in rows] == [
        ["cat", "cat", 0.5],
        ["cat", "dog", 0.5],
        ["dog", "cat", 0],
        ["dog", "dog", 0],
    ]


# What is refused


@pytest.mark.parametrize("faulty", [[], [[True]], [1, 0], torch.ones(3), True], ids=str)
def test_what_is_no_sample_is_refused(faulty):
    for function in (
        lambda: accuracy.interval(faulty, 0.95),
        lambda: accuracy.mcnemar(faulty, [True], 0.95),
        lambda: accuracy.mcnemar([True], faulty, 0.95),
        lambda: accuracy.by_class([0], faulty, PETS, 0.95),
    ):
        with pytest.raises(ValueError, match=r"bool \(N,\), N >= 1, got "):
            function()


@pytest.mark.parametrize("level", [0, 1, -0.1, 95, float("nan")])
def test_a_level_outside_0_to_1_is_refused(level):
    for function in (
        lambda: accuracy.interval([True], level),
        lambda: accuracy.mcnemar([True], [True], level),
        lambda: accuracy.by_class([0], [True], PETS, level),
        lambda: accuracy.clopper_pearson_lower(1, 2, level),
    ):
        with pytest.raises(ValueError, match=r"must lie in \(0, 1\), got"):
            function()


@pytest.mark.parametrize(("count", "images"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_that_cannot_be_are_refused(count, images):
    with pytest.raises(ValueError, match="must"):
        accuracy.interval_of_count(count, images, 0.95)
    with pytest.raises(ValueError, match=rf"n be at least 1, got \[{min(1, count)}, {max(1, count)}\] and n {images}"):
        accuracy.clopper_pearson_lower([1, count], images, 0.05)


def test_a_paired_test_needs_the_same_images():
    with pytest.raises(ValueError, match="same images: 1 against 2"):
        accuracy.mcnemar([True], [True, False], 0.95)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0], r"labels must be ints \(2,\), got int64 \(1,\)"),
        ([0.0, 1.0], r"labels must be ints \(2,\), got float64"),
        ([0, 4], r"labels must lie in \[0, 4\), got \[0, 4\]"),
        ([-1, 0], r"got \[-1, 0\]"),
    ],
)
def test_labels_that_name_no_class_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy.by_class(labels, [True, False], PETS, 0.95)
    with pytest.raises(ValueError, match=message.replace("labels", "taken")):
        list(accuracy.confusion([0, 1], labels, PETS))
