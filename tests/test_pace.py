"""How long a model is at work: passes are counted by what they cost, timed on one batch, and told in plain words."""

import pytest
import torch

from stages.common import attacks, distributed, images, pace
from tests.small import all_right


@pytest.fixture(scope="module")
def case(digits):
    return all_right(digits)


def test_passes_are_counted_in_images_with_their_gradient_and_without(case):
    model, x, y = case
    with pace.Passes(model).counted() as found:
        attacks.fgsm(model, x, y, 0.1)
        attacks.withstood(model, x[:7], y[:7])
    attacks.withstood(model, x, y)  # nobody listens any more
    assert (found.gradient, found.plain) == (len(x), 7)


def test_gradients_and_passes_each_take_their_time():
    assert pace.Speed(gradient=0.02, plain=0.01).seconds(10, 5) == pytest.approx(pace.SLACK * 0.25)


def test_a_model_is_timed_on_its_images(case, digits):
    speed = pace.timed(case[0], digits.take(images.sample(digits.labels, 50)))
    assert 0 < speed.plain < 1 and 0 < speed.gradient < 1


def test_work_is_tried_on_a_few_images_and_foreseen_for_all(case, digits, monkeypatch):
    """Each image takes a gradient and two plain passes here; of two ranks each does half."""
    tried = []

    def work(some):
        tried.append(len(some))
        x = images.to_float(some.images)
        attacks.fgsm(case[0], x, some.labels, 0.1)
        for _ in range(2):
            attacks.answers(case[0], x)

    monkeypatch.setattr(pace, "timed", lambda model, image_set: pace.Speed(gradient=0.02, plain=0.01))
    monkeypatch.setattr(distributed, "count", lambda: 2)
    few = digits.take(torch.arange(500))
    assert pace.foreseen(case[0], few, work) == pytest.approx(pace.SLACK * 500 * 0.04 / 2)
    assert tried == [pace.TRIED]


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_time_is_said_as_a_person_would(seconds, said):
    assert pace.said(seconds) == said
