"""Answers that could be luck are told from those that could not, as exact tests do it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, fisher_exact

from stages.common.audit import guessing

LABELS = st.lists(st.integers(0, 3), min_size=1, max_size=60).map(torch.tensor)


@settings(max_examples=20, deadline=None)
@given(LABELS, st.integers(0, 3))
def test_one_answer_for_all_images_is_no_information_and_the_right_ones_are(labels, answer):
    assert not guessing.informed(labels, torch.full_like(labels, answer))
    if guessing.can_be_told(labels):
        assert guessing.informed(labels, labels)


@pytest.mark.parametrize(("sizes", "told"), [((10, 0), False), ((3, 4), False), ((3, 5), True), ((1, 40), True)])
def test_few_images_and_one_class_tell_nothing(sizes, told):
    """3 + 4 images have 35 orders, of which one is right: not below 2.5 %. 3 + 5 have 56."""
    labels = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    assert guessing.can_be_told(labels) == told


@pytest.mark.parametrize("of_few", [2, 4, 5, 8])  # right answers to 10 images of the smaller class
def test_two_classes_are_judged_as_fisher_s_exact_test_judges_them(of_few):
    labels = torch.cat([torch.zeros(90), torch.ones(10)]).long()
    answers = torch.zeros_like(labels)
    answers[:15] = 1
    answers[-of_few:] = 1
    p = float(fisher_exact([[75, 15], [10 - of_few, of_few]], alternative="greater").pvalue)
    assert abs(p - guessing.LEVEL) > 0.015, "too near to call by random deals"
    assert guessing.informed(labels, answers) == (p < guessing.LEVEL)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (4, 0), (5, 0), (5, 1), (9, 2), (20, 20)])
def test_what_one_answer_alone_has_right_is_weighed_against_what_the_model_alone_has(gained, lost):
    labels = torch.cat([torch.zeros(60), torch.ones(30)]).long()
    right = labels == 0
    right[:lost], right[60 : 60 + gained] = False, True
    p = binomtest(gained, gained + lost, alternative="greater").pvalue if gained + lost else 1.0
    assert guessing.beats_one_answer(labels, right) == (p < guessing.LEVEL)
