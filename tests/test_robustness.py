"""What an attacked model is worth on a whole set: the same whatever the batches, consistent from one to the next."""

import sys

import pytest
import torch

from stages.common import attacks, evaluation, images, robustness
from tests.small import RECIPE, fit

EPSILONS = (0.0, 0.03, 0.1, 0.3)
TARGET = 3


@pytest.fixture(scope="module")
def model(digits, tmp_path_factory):
    """A classifier of digits that is neither perfect nor robust: every measure has something to count."""
    return fit(digits, tmp_path_factory.mktemp("work"), RECIPE)[0]


@pytest.fixture(scope="module")
def held_out(digits):
    return digits.take(torch.arange(1600, 1797))  # 197: no multiple of a batch


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(sys.modules["stages.common.images.batches"], "BATCH_SIZE", 32)


def test_without_an_attack_the_predictions_are_the_clean_ones(model, held_out, small_batches):
    with torch.no_grad():
        clean = model(images.to_float(held_out.images)).argmax(1)
    right = int((clean == held_out.labels).sum())
    assert 0.8 * len(held_out) < right < len(held_out)
    assert torch.equal(robustness.fgsm_predictions(model, held_out, [0.0])[0], clean)
    assert torch.equal(robustness.pgd_predictions(model, held_out, 0.0, steps=1, seed=0), clean)


@pytest.mark.parametrize("target", [None, TARGET, 0])  # 0 is a target too, though it is false
def test_fgsm_in_batches_is_the_sweep_over_the_whole_set(model, held_out, small_batches, target):
    labels = held_out.labels if target is None else torch.full_like(held_out.labels, target)
    x = images.to_float(held_out.images)
    whole = attacks.fgsm_sweep(model, x, labels, EPSILONS, targeted=target is not None)
    assert torch.equal(robustness.fgsm_predictions(model, held_out, EPSILONS, target=target), whole)
    assert len(whole.unique(dim=0)) == len(EPSILONS)  # so that rows in another order would be noticed


def test_targeted_fgsm_moves_predictions_towards_the_target(model, held_out, small_batches):
    """Averaged over all targets, since some classes of so small a model are hard to reach."""
    hits = torch.zeros(len(EPSILONS), dtype=torch.float64)
    for target in range(10):
        others = held_out.take((held_out.labels != target).nonzero().squeeze(1))
        hits += (robustness.fgsm_predictions(model, others, EPSILONS, target=target) == target).double().mean(1) / 10
    assert hits[1] > hits[0] and hits[2] > hits[0] + 0.05
    assert hits[2] > 1 / 9  # an untargeted attack that fools the model every time hits no more than this on average


def test_survivors_of_pgd_only_become_fewer_and_start_as_the_correct_ones(model, held_out, small_batches):
    alive = robustness.pgd_survivors(model, held_out, EPSILONS, steps=3, seed=0)
    clean = evaluation.predictions(model, held_out.images) == held_out.labels
    assert alive.shape == (len(EPSILONS), len(held_out)) and alive.dtype == torch.bool
    assert torch.equal(alive[0], clean)
    assert (alive[1:] <= alive[:-1]).all()
    counts = alive.sum(1).tolist()
    assert counts[0] > counts[1] > counts[2] > counts[3]


def test_survivors_are_those_that_pgd_at_each_budget_left_correct(model, held_out, small_batches):
    """Each budget attacks the last one's survivors alone, and a survivor was correct in every one of these attacks."""
    alive = robustness.pgd_survivors(model, held_out, EPSILONS, steps=3, seed=5)
    for row in range(1, len(EPSILONS)):
        attacked = alive[row - 1].nonzero().squeeze(1)
        left = held_out.take(attacked)
        correct = robustness.pgd_predictions(model, left, EPSILONS[row], steps=3, seed=5) == left.labels
        assert torch.equal(alive[row][attacked], correct)
        assert int(alive[row].sum()) == int(correct.sum())


@pytest.mark.parametrize("eps", [0.02, 0.05, 0.1])
def test_no_image_that_plain_pgd_breaks_is_counted_as_correct(model, held_out, small_batches, eps):
    """From the same starts: what is broken on the way stays broken, so that the count is never above PGD's own."""
    plain = []
    for batch in images.batches(held_out.images, held_out.labels, device=torch.device("cpu"), description="PGD"):
        attacked = attacks.pgd(model, batch.x, batch.y, eps, steps=6, generator=batch.generator(3))
        plain.append(attacks.withstood(model, attacked, batch.y))
    correct = robustness.pgd_predictions(model, held_out, eps, steps=6, seed=3) == held_out.labels
    assert not (correct & ~torch.cat(plain)).any() and 0 < int(correct.sum()) < len(held_out)


def test_logits_are_those_of_the_images_and_of_what_plain_pgd_makes_of_them(model, held_out, small_batches):
    found = robustness.logits(model, held_out, 0.05, steps=6, seed=3)
    assert list(found) == ["clean", "pgd"] and found["pgd"].shape == (len(held_out), 10)
    assert torch.equal(found["clean"].argmax(1), evaluation.predictions(model, held_out.images))
    right = []
    for batch in images.batches(held_out.images, held_out.labels, device=torch.device("cpu"), description="PGD"):
        attacked = attacks.pgd(model, batch.x, batch.y, 0.05, steps=6, generator=batch.generator(3))
        right.append(attacks.withstood(model, attacked, batch.y))
    assert torch.equal(found["pgd"].argmax(1) == held_out.labels, torch.cat(right))


def test_a_search_in_bfloat16_counts_in_float32_and_finds_as_much(model, held_out, small_batches):
    """Clean images are counted to the last one, attacked ones all but for a few."""
    exact = robustness.pgd_survivors(model, held_out, EPSILONS, steps=5, seed=0)
    fgsm = robustness.fgsm_predictions(model, held_out, EPSILONS)
    with attacks.searching(bfloat16=True):
        rough = robustness.pgd_survivors(model, held_out, EPSILONS, steps=5, seed=0)
        assert torch.equal(robustness.fgsm_predictions(model, held_out, EPSILONS), fgsm)
    assert torch.equal(rough[0], exact[0]) and not torch.equal(rough, exact)
    assert (rough[1:] <= rough[:-1]).all() and (rough.sum(1) - exact.sum(1)).abs().max() <= 6


def test_pgd_repeats_with_its_seed_and_starts_elsewhere_with_another(model, held_out, small_batches, monkeypatch):
    attacked = []
    hunt = attacks.hunt
    monkeypatch.setattr(attacks, "hunt", lambda *args: attacked.append(hunt(*args)) or attacked[-1])

    def run(seed):
        attacked.clear()
        predicted = robustness.pgd_predictions(model, held_out, 0.1, steps=1, seed=seed)
        return predicted, torch.cat(attacked)

    (predicted, one), (again, other), (_, third) = run(0), run(0), run(1)
    assert torch.equal(predicted, again) and torch.equal(one, other)
    assert not torch.equal(one, third)
    twins = held_out.take(torch.zeros(64, dtype=torch.int64))  # one image 64 times, in two batches
    attacked.clear()
    robustness.pgd_predictions(model, twins, 0.1, steps=1, seed=0)
    assert not torch.equal(attacked[0], attacked[1])  # the second batch does not reuse the first one's noise


def test_a_model_that_knows_nothing_leaves_nobody_to_attack(model, held_out):
    hopeless = held_out.take(evaluation.predictions(model, held_out.images).ne(held_out.labels).nonzero().squeeze(1))
    assert len(hopeless) and not robustness.pgd_survivors(model, hopeless, EPSILONS, steps=1, seed=0).any()
