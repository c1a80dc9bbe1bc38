"""Planted examples exist, sound attacks find them, and whatever is wrong with an attack it finds too few."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.common import attacks, images, models, training
from stages.common.audit import planted, probes
from tests.small import RECIPE, parts

EPS, STEPS = 0.1, 20
OWN = planted.audits_own(STEPS)


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """A classifier of digits with more features than `small` gives it, as real ones have."""
    torch.manual_seed(0)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[16, 64])
    train_set, val_set = parts(digits)
    model.adapt(images.to_float(train_set.images))
    folder = tmp_path_factory.mktemp("work")
    training.train(model, train_set, val_set, RECIPE, None, resume_in=folder, log=lambda rows: None, name="test")
    return model.eval()


@pytest.fixture(scope="module")
def few(digits):
    return images.to_float(digits.take(torch.arange(1600, 1640)).images)


@pytest.fixture(scope="module")
def questions(model, few):
    return planted.plant(model, few, EPS, generator=seeded(0))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def share(questions, attack):
    return planted.found(questions, attack, generator=seeded(1))


# What is planted is there


def test_every_image_is_of_class_0_and_its_example_within_eps_of_class_1(questions, few):
    assert len(questions) >= 0.9 * len(few)
    for question in questions:
        assert attacks.withstood(question, question.image, torch.tensor([0]))
        assert attacks.withstood(question, question.example, torch.tensor([1]))
        assert question.example.min() >= 0 and question.example.max() <= 1
        assert (question.example - question.image).abs().max() <= EPS + 1e-6
    assert all((few == question.image).all((1, 2, 3)).any() for question in questions)


def test_neighbours_that_no_head_has_seen_are_of_class_0_and_no_loss_is_flat_or_saturated(questions):
    wrong, tried = 0, 0
    for question in questions:
        inner = attacks.Linf(question.image.expand(100, -1, -1, -1), planted.WITHIN * EPS).start(seeded(2))
        corners = attacks.sign_noise(question.image.expand(100, -1, -1, -1), EPS, generator=seeded(3))
        with torch.no_grad():
            logits = question(torch.cat([inner, corners]))
        wrong, tried = wrong + int(logits.argmax(1).sum()), tried + len(logits)
        difference = logits[:, 1] - logits[:, 0]
        assert -2 < difference.mean() < -0.5 and difference.min() > -5
    assert wrong / tried < 0.005


def test_equal_seeds_plant_and_find_equal_examples(model, few, questions):
    again, other = (planted.plant(model, few, EPS, generator=seeded(seed)) for seed in (0, 1))
    for one, two in zip(questions, again, strict=True):
        assert torch.equal(one.example, two.example) and torch.equal(one.head.weight, two.head.weight)
    assert not torch.equal(questions[0].example, other[0].example)
    assert share(questions, OWN["FGSM"]) == share(again, OWN["FGSM"])


def test_the_model_is_left_as_it_was(model, few):
    before = probes.state(model.train())
    questions = planted.plant(model, few[:2], EPS, generator=seeded(0))
    for attack in OWN.values():
        share(questions, attack)
    assert probes.changes(before, probes.state(model)) == []
    model.eval()


class Featured(models.Classifier):
    """A classifier of grey images whose features are what `features` gives."""

    def __init__(self, features):
        super().__init__(1, ["a", "b"])
        self.given = features

    def features(self, x):
        return self.given(x)


@settings(max_examples=25, deadline=None)
@given(eps=st.floats(0.01, 0.5), width=st.integers(2, 64), seed=st.integers(0, 999))
def test_of_linear_features_one_step_finds_whatever_is_planted(eps, width, seed):
    """There FGSM reaches the best corner of the ball, and the planted one cannot be better."""
    weights = torch.randn(64, width, generator=seeded(seed))
    x = torch.rand(3, 1, 8, 8, generator=seeded(seed)).round(decimals=1)  # 0 and 1 among them
    questions = planted.plant(Featured(lambda x: x.flatten(1) @ weights), x, eps, generator=seeded(seed))
    for question in questions:
        assert question(torch.cat([question.image, question.example])).argmax(1).tolist() == [0, 1]
    assert not questions or share(questions, OWN["FGSM"]) == 1
    assert questions or width < 16


# Where nothing can be planted


def test_a_model_without_features_is_refused(few):
    without = Featured(lambda x: x.flatten(1))
    assert planted.has_features(without)
    without.has_features = False
    for model in (without, nn.Flatten()):
        assert not planted.has_features(model)
        with pytest.raises(ValueError, match="no features"):
            planted.plant(model, few, EPS, generator=seeded(0))


@pytest.mark.parametrize(
    "features",
    [
        lambda x: torch.ones(len(x), 5),  # none moves
        lambda x: x.flatten(1) * torch.nan,
        lambda x: x.flatten(1)[:, :1],  # one alone: many corners are as far out
    ],
    ids=["constant", "not a number", "one"],
)
def test_nothing_is_planted_where_no_corner_stands_out(few, features):
    assert planted.plant(Featured(features), few[:3], EPS, generator=seeded(0)) == []


def test_nothing_is_planted_at_eps_0_and_pixels_outside_their_range_are_refused(model, few):
    assert planted.plant(model, few[:3], 0.0, generator=seeded(0)) == []
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        planted.plant(model, few * 255, EPS, generator=seeded(0))
    with pytest.raises(ValueError, match="planted"):
        share([], OWN["PGD"])


# Who finds it


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("name", ["PGD", "margins"])
def test_sound_attacks_find_what_is_planted(questions, name, bfloat16):
    with attacks.searching(bfloat16=bfloat16):
        assert share(questions, OWN[name]) >= planted.SOUND


def test_chance_hardly_finds_any_and_fgsm_fewer_than_pgd(questions):
    assert share(questions, OWN["chance"]) <= planted.LUCK
    assert share(questions, OWN["FGSM"]) < share(questions, OWN["PGD"])


def constant(labels):
    return lambda logits, chosen: 0 * logits.sum(1)


FAULTS = {
    "too few steps": lambda m, x, y, eps, g: attacks.pgd(m, x, y, eps, steps=2, step_size=2.5 * eps / 20, generator=g),
    "too small a step": lambda m, x, y, eps, g: attacks.pgd(m, x, y, eps, steps=20, step_size=eps / 100, generator=g),
    "half the budget": lambda m, x, y, eps, g: attacks.pgd(m, x, y, eps / 2, steps=20, generator=g),
    "the wrong sign": lambda m, x, y, eps, g: attacks.pgd(m, x, y, eps, steps=20, targeted=True, generator=g),
    "another's label": lambda m, x, y, eps, g: attacks.pgd(m, x, 1 - y, eps, steps=20, generator=g),
    "a constant loss": lambda m, x, y, eps, g: attacks.pgd_until_broken(
        m, x, y, eps, steps=20, climbed=constant, generator=g
    ),
    "no start, no step": lambda m, x, y, eps, g: x,
    "more than the budget": lambda m, x, y, eps, g: attacks.pgd(m, x, y, 3 * eps, steps=20, generator=g),
    "pixels out of range": lambda m, x, y, eps, g: x + eps * attacks.input_gradient(m, x, y).sign(),
    "noise": lambda m, x, y, eps, g: attacks.sign_noise(x, eps, generator=g),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_attack_at_fault_finds_too_few(questions, fault):
    assert share(questions, FAULTS[fault]) < 0.3 < planted.SOUND


def rounded(x):
    return (x * 10).round() / 10  # the gradient of `round` is 0


@pytest.mark.parametrize("name", ["PGD", "margins", "FGSM"])
@pytest.mark.parametrize(
    "masked",
    [
        lambda model: lambda x: model.features(rounded(x)),
        lambda model: lambda x: rounded(model.features(x)),
        lambda model: (
            lambda x: (1e4 * (model.features(x) - model.features(x).detach().mean(1, keepdim=True))).sigmoid()
        ),
    ],
    ids=["of rounded pixels", "of rounded features", "of saturated features"],
)
def test_gradients_that_are_masked_lead_to_too_few(model, few, masked, name):
    with models.frozen(model):
        questions = planted.plant(Featured(masked(model)), few[:20], EPS, generator=seeded(0))
        assert len(questions) >= 10
        assert share(questions, OWN[name]) < 0.3 < planted.SOUND


def test_an_attack_may_repeat_and_drop_images(questions):
    """Of a batch of its own making every row is answered by the same head."""

    def one_of_many_starts(model, x, y, eps, generator):
        starts, labels = x.repeat(8, 1, 1, 1), y.repeat(8)
        attacked = attacks.pgd_until_broken(model, starts, labels, eps, steps=STEPS, generator=generator)
        return attacked[attacks.withstood(model, attacked, labels).int().argmin()].unsqueeze(0)

    assert share(questions[:10], one_of_many_starts) >= share(questions[:10], OWN["PGD"])
