"""Adversarial training: the methods by name, the ramp, the budget, and the watch over epochs that break the model."""

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages import train_robust
from stages.common import adversary, attacks, evaluation, images, params, robustness, training
from stages.common.adversary import METHODS, Adversary, Duel, Method, Settings
from stages.common.errors import UserError
from tests.small import RECIPE, SETTINGS, Scripted, against, fit, new_model, parts, same, scripted

SOUND = (0.9, 0.5, 0.45)  # clean accuracy, FGSM's and PGD's


def progress(done=0.0, rows=(), last_epoch=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return training.Progress(done=done, rows=list(rows), last_epoch=last_epoch, generator=generator)


def good(**figures):
    """The row of a sound epoch, but for these figures."""
    return {"eps": 0.1, "val_margin": 0.5, "gap": 0.0, "overfitted": 0, "collapsed": 0} | figures


class Bent(nn.Module):
    """Three classes whose logits bend with the pixels: a gradient of its own at every image, never 0."""

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([(flat * flat).sum(1), flat.sum(1), torch.sin(5 * flat).sum(1)], dim=1) / 10


ONE_STEP = ("n-fgsm", "rs-fgsm", "fgsm")


def learner(model, smoothing=0.0):
    return training.Learner(model, model, partial(F.cross_entropy, label_smoothing=smoothing))


def duel(model, eps, *, seed=0, **changes):
    given = {"noise": 2.0, "steps": 3, "total": 0} | changes
    generator = torch.Generator().manual_seed(seed)
    return Duel(model=model, learner=learner(model), eps=eps, generator=generator, **given)


def attacked_by(name, at, x, y):
    """What a method's attack makes of `x` when the cross-entropy is climbed, and the images whose gradients it took."""
    starts, climbed = [], at.uphill(lambda logits: F.cross_entropy(logits, y, reduction="none"))

    def uphill(attacked):
        starts.append(attacked.clone())
        return climbed(attacked)

    return METHODS[name].attack(at._replace(total=len(x)), uphill, x.clone()), starts


def slope_sign(model, x, y):
    """Of the loss, by torch alone."""
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)[0].sign()


CASES = {
    "eps": st.floats(0.001, 0.5),
    "shape": st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    "seed": st.integers(0, 2**32),
}


def drawn(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand(shape, generator=generator), torch.randint(3, shape[:1], generator=generator)
    return (x.round() if seed % 2 else x), y  # black and white: every pixel lies on the border of [0, 1]


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(ONE_STEP), noise=st.floats(0, 3), **CASES)
def test_each_attack_of_one_step_does_what_its_docstring_says(name, noise, eps, shape, seed):
    """Where it starts, how far it steps along the gradient's sign there, and what bounds the result."""
    (x, y), model = drawn(shape, seed), Bent()
    attacked, starts = attacked_by(name, duel(model, eps, noise=noise, seed=seed), x, y)
    (start,) = starts  # one gradient: the price of about one pass more
    reach, size = {"fgsm": (0.0, eps), "rs-fgsm": (eps, 1.25 * eps)}.get(name, (noise * eps, eps))
    expected = (start + size * slope_sign(model, start, y)).clamp(0, 1)
    if name == "rs-fgsm":
        expected = expected.clamp(x - eps, x + eps)
        assert start.min() >= 0 and start.max() <= 1
    assert (start - x).abs().max() <= reach + 1e-6
    assert attacked.shape == x.shape and attacked.min() >= 0 and attacked.max() <= 1
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["pgd", "trades"]), steps=st.integers(1, 6), **CASES)
def test_pgd_takes_its_steps_within_the_ball(name, steps, eps, shape, seed):
    """Every one of them written out, from the noise of the same generator: steps of 2.5 budgets in all."""
    (x, y), model = drawn(shape, seed), Bent()
    attacked, starts = attacked_by(name, duel(model, eps, steps=steps, seed=seed), x, y)
    assert len(starts) == steps
    for found in (*starts, attacked):
        assert found.min() >= 0 and found.max() <= 1 and (found - x).abs().max() <= eps + 1e-6
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(starts[0], torch.clamp(x + (2 * noise - 1) * eps, low, high), atol=1e-6, rtol=0)
    for start, following in pairwise([*starts, attacked]):
        expected = torch.clamp(start + 2.5 * eps / steps * slope_sign(model, start, y), low, high)
        torch.testing.assert_close(following, expected, atol=1e-6, rtol=0)


def test_random_starts_fill_their_reach_and_the_attacks_differ():
    """On grey images, which no border of [0, 1] cuts short, and a model whose gradient is nowhere 0."""
    model, x, y = Bent(), torch.full((200, 1, 8, 8), 0.5), torch.arange(200) % 3
    found = {name: attacked_by(name, duel(model, 0.1), x, y) for name in METHODS}
    change = {name: (attacked - x).abs() for name, (attacked, _) in found.items()}
    assert torch.equal(found["fgsm"][0], attacks.fgsm(model, x, y, 0.1))
    assert change["n-fgsm"].max() == pytest.approx(0.3, abs=1e-3)  # two budgets of noise that stay, a step of one
    assert float((change["n-fgsm"] < 0.1).double().mean()) == pytest.approx(1 / 2, abs=0.03)
    assert change["rs-fgsm"].min() == pytest.approx(0.025, abs=1e-3)  # 1.25 budgets from anywhere in the ball,
    assert float((change["rs-fgsm"] > 0.0999).double().mean()) == pytest.approx(5 / 8, abs=0.03)  # and back into it
    start = (found["pgd"][1][0] - x).abs()  # anywhere in the ball
    assert start.max() > 0.0999 and float((start < 0.05).double().mean()) == pytest.approx(1 / 2, abs=0.03)
    for name in ("n-fgsm", "rs-fgsm", "pgd"):
        (same, started), (_, elsewhere) = (attacked_by(name, duel(model, 0.1, seed=seed), x, y) for seed in (0, 1))
        assert torch.equal(same, found[name][0]) and not torch.equal(started[0], elsewhere[0])


def test_an_unknown_attack_is_refused_and_the_known_ones_named():
    with pytest.raises(ValueError, match=r"'nfgsm' is not one of n-fgsm, rs-fgsm, fgsm, pgd, trades"):
        replace(SETTINGS, attack="nfgsm")


class Seen(NamedTuple):
    """What a step of training came to, and what its attack was given and made."""

    objective: training.Objective
    duel: Duel
    attacked: torch.Tensor


def step_of(opponent, name, x, y, at, *, smoothing=0.0, during=lambda: None):
    """One objective of a method, which keeps its name in METHODS while its attack is looked on."""
    method, seen = METHODS[name], []

    def attack(given, uphill, images):
        seen.extend((given, method.attack(given, uphill, images)))
        during()
        return seen[-1]

    with mock.patch.dict(METHODS, {name: method._replace(attack=attack)}):
        found = opponent.objective(learner(opponent.model, smoothing), x, y, at)
    return Seen(found, *seen)


def test_the_method_that_is_named_is_the_one_that_trains(digits, monkeypatch):
    """A new one is a function and a line in METHODS."""
    given = []

    def own(duel, uphill, images):
        given.append((duel, len(images)))
        return 1 - images

    monkeypatch.setitem(METHODS, "own", Method(own, adversary.learn_attacked))
    model, (_, val_set) = new_model(digits).train(), parts(digits)
    x, y = images.to_float(val_set.images[:64]), val_set.labels[:64]
    at, under = progress(done=0.25), learner(model, 0.1)
    opponent = Adversary(model, val_set, replace(SETTINGS, attack="own"))
    logits, loss = opponent.objective(under, x, y, at)
    ((seen, count),) = given
    assert (count, seen.eps, seen.noise, seen.steps, seen.total) == (48, 0.05, 2.0, 3, 48)
    assert seen.generator is at.generator  # the epoch's own randomness, which a resumed run has again
    mixed = model(torch.cat([1 - x[:48], x[48:]]))  # a quarter stays clean
    torch.testing.assert_close(logits, mixed)
    torch.testing.assert_close(loss, F.cross_entropy(mixed, y, label_smoothing=0.1))


@pytest.mark.parametrize("name", METHODS)
def test_the_attack_leaves_batchnorm_statistics_to_the_training_passes(digits, name):
    model, (train_set, val_set) = new_model(digits).train(), parts(digits)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, y = images.to_float(train_set.images[:64]), train_set.labels[:64]
    opponent = Adversary(model, val_set, replace(SETTINGS, attack=name))

    def passes():
        return int(model.first_norm[0].num_batches_tracked - before["first_norm.0.num_batches_tracked"])

    def look():
        assert all(parameter.grad is None for parameter in model.parameters())
        untouched = all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert not model.training and passes() == 0 and untouched

    given = x.clone()
    seen = step_of(opponent, name, x, y, progress(done=1.0), during=look)
    assert model.training and passes() == (2 if name == "trades" else 1)
    assert torch.equal(x, given) and not x.requires_grad
    assert ((seen.attacked - x[:48]).abs().amax((1, 2, 3)) > 0.05).all()
    seen.objective.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_budget_or_a_share_a_batch_stays_clean(digits, name):
    model, (_, val_set) = new_model(digits).train(), parts(digits)
    x, y = images.to_float(val_set.images[:64]), val_set.labels[:64]
    plain = model(x)
    for changes, done in (({}, 0.0), ({"fraction": 0.007}, 1.0)):
        opponent = Adversary(model, val_set, replace(SETTINGS, attack=name, **changes))
        logits, loss = opponent.objective(learner(model), x, y, progress(done=done))
        assert torch.equal(logits, plain) and torch.equal(loss, F.cross_entropy(plain, y))


def kl(one, other):
    """Of probabilities, (N, K) each: (N,)."""
    return (one * (one.log() - other.log())).sum(1)


def small_case(name, share, **changes):
    """Twenty images, their labels, a model without BatchNorm and its opponent."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 1, 4, 4, generator=generator), torch.randint(3, (20,), generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)).train()
    few = images.ImageSet(torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.arange(3), ["a", "b", "c"])
    return x, y, model, Adversary(model, few, replace(SETTINGS, attack=name, fraction=share, **changes))


@pytest.mark.parametrize("share", [1.0, 0.75, 0.1])
def test_trades_is_the_loss_of_clean_images_and_six_times_the_divergence(share):
    """Zhang 2019, written out: cross-entropy + 6 KL(clean || attacked), a mean over the batch, both answers learnt."""
    x, y, model, opponent = small_case("trades", share)
    found, _, attacked = step_of(opponent, "trades", x, y, progress(done=1.0), smoothing=0.1)
    found.loss.backward()
    slopes = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()

    count = round(share * 20)
    assert len(attacked) == count and not torch.equal(attacked, x[:count])
    apart = kl(model(x[:count]).softmax(1), model(attacked).softmax(1)).sum() / 20
    expected = F.cross_entropy(model(x), y, label_smoothing=0.1) + 6 * apart
    expected.backward()
    assert torch.equal(found.logits, model(x)) and apart > 0
    torch.testing.assert_close(found.loss, expected)
    for slope, parameter in zip(slopes, model.parameters(), strict=True):
        torch.testing.assert_close(slope, parameter.grad, atol=1e-6, rtol=1e-4)


def test_trades_attacks_the_divergence_and_knows_no_label():
    """What it climbs is KL(clean || attacked) of the model as it stands, whatever the labels."""
    generator = torch.Generator().manual_seed(0)
    x, model = torch.rand(12, 1, 4, 4, generator=generator), Bent()
    clean, slopes = model(x).softmax(1), []

    def attack(given, uphill, images):
        start = images + 0.1
        slopes.append(uphill(start))
        moved = start.clone().requires_grad_(True)
        apart = (clean * (clean.log() - model(moved).log_softmax(1))).sum()
        slopes.append(torch.autograd.grad(apart, moved)[0])
        return start

    for y in (torch.zeros(12, dtype=torch.int64), torch.full((12,), 2)):
        adversary.learn_trades(METHODS["trades"]._replace(attack=attack), duel(model, 0.1, total=12), x, y)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2]) and (slopes[0] != 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_a_model_that_withstands_more_than_a_plain_one(digits, tmp_path, name):
    settings = replace(SETTINGS, attack=name, fraction=1.0, noise=1.0, undo_overfitting=False, pgd_steps=5)
    plain, _ = fit(digits, tmp_path)
    model, result = fit(digits, tmp_path, RECIPE, against(settings))
    held_out = parts(digits)[1]
    taken = [robustness.pgd_predictions(net, held_out, 0.1, steps=5, seed=0) for net in (plain, model)]
    left = [int((found == held_out.labels).sum()) for found in taken]
    assert result.rows[-1]["val_accuracy"] > 0.7 and left[1] > left[0]


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_training_attack_s_gradients_are_of_its_learner_s_precision(digits, bfloat16):
    """And come as float32 ones, without holes: bfloat16 has float32's exponents."""
    model, few = new_model(digits).eval(), digits.take(torch.arange(50))
    x, y = images.to_float(few.images), few.labels

    def forward(images):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model(images).float()

    at = duel(model, 0.1)._replace(learner=training.Learner(forward, forward, F.cross_entropy))
    slope = at.uphill(lambda logits: F.cross_entropy(logits, y, reduction="none"))(x)
    exact = attacks.input_gradient(model, x, y)
    assert slope.dtype == torch.float32 and torch.equal(slope, exact) == (not bfloat16)
    assert float((slope.sign() == exact.sign()).double().mean()) > 0.95


def test_input_gradients_do_not_change_inside_a_caller_s_autocast(digits):
    model, few = new_model(digits).eval(), digits.take(torch.arange(50))
    x, y = images.to_float(few.images), few.labels
    expected = attacks.input_gradient(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attacks.input_gradient(model, x, y), expected)


def test_the_ramp_s_corners():
    assert [adversary.ramp(done, 0.5) for done in (0, 0.25, 0.5, 1)] == pytest.approx([0, 0.5, 1, 1])
    assert adversary.ramp(0, 0) == 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_the_budget_grows_to_its_goal_and_stays_there(one, later, share, eps, goal):
    one, later = sorted((one, later))
    few = images.ImageSet(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.arange(2), ["a", "b"])
    opponent = Adversary(Bent(), few, replace(SETTINGS, eps=eps, goal=goal, ramp=share))
    assert 0 <= opponent.budget(progress(one)) <= opponent.budget(progress(later)) <= goal
    assert opponent.budget(progress(1.0)) == goal


def test_settings_are_those_of_params_yaml():
    given = {"dataset": "digits", "eps": 0.07, "seed": 5, "train_robust.attack": "rs-fgsm", "train_robust.steps": 7}
    knobs = params.load(overrides=given)
    found, robust = Settings.from_params(knobs), knobs.train_robust
    assert (found.eps, found.seed, found.attack, found.goal) == (0.07, 5, "rs-fgsm", 0.07)
    assert (found.steps, found.pgd_steps) == (7, robust.pgd_steps)
    assert (found.fraction, found.noise, found.ramp) == (robust.adversarial_fraction, robust.noise, robust.ramp)


def test_overfitting_is_noticed_undone_and_the_best_sound_epoch_kept(digits, tmp_path, capsys):
    """Epoch 3 seems immune to one step and falls to ten: its weights go, and the budget with them."""
    script = {1: (0.9, 0.35, 0.3), 2: (0.9, 0.55, 0.5), 3: (0.9, 0.9, 0.0), 4: (0.9, 0.45, 0.4)}
    judged, logged, regimes = [], [], []

    def opponent(model, val_set):
        regimes.append(Scripted(model, val_set, replace(SETTINGS, ramp=0.0), script))
        judge = regimes[0].after_epoch

        def after_epoch(row, progress):
            judged.append({key: value.clone() for key, value in model.state_dict().items()})
            return judge(row, progress)

        regimes[0].after_epoch = after_epoch
        return regimes[0]

    def log(rows):
        state = regimes[0].model.state_dict()
        logged.append(
            [i for i, earlier in enumerate(judged, 1) if all(torch.equal(earlier[k], state[k]) for k in state)]
        )

    model, result = fit(digits, tmp_path, RECIPE, opponent, log)
    assert [row["overfitted"] for row in result.rows] == [0, 0, 1, 0]
    assert logged == [[1], [2], [2], [4]]  # only the overfitted epoch's weights are taken back
    assert [row["eps"] for row in result.rows] == pytest.approx([0.1, 0.1, 0.1, 0.075])
    assert regimes[0].budget(progress(1.0, result.rows)) == pytest.approx(0.075)
    assert result.epoch == 2 and all(torch.equal(judged[1][key], value) for key, value in model.state_dict().items())
    said = [line for line in capsys.readouterr().out.splitlines() if "catastrophic overfitting: going back" in line]
    assert len(said) == 1 and said[0].startswith("test: epoch 3/4")


def test_every_break_takes_a_quarter_off_the_budget(digits):
    opponent = Adversary(new_model(digits), parts(digits)[1], SETTINGS)
    rows = [good(), good(eps=0.08, overfitted=1), good(eps=0.06, collapsed=1), good(eps=0.045)]
    budgets = [opponent.budget(progress(1.0, rows[:n])) for n in range(5)]
    assert budgets == pytest.approx([0.1, 0.1, 0.06, 0.045, 0.045])
    assert opponent.budget(progress(0.1, rows)) == pytest.approx(0.02)  # the ramp, while it is below that
    marked_only = Adversary(opponent.model, parts(digits)[1], replace(SETTINGS, undo_overfitting=False))
    assert marked_only.budget(progress(1.0, rows)) == 0.1


def test_epochs_that_have_merely_not_learnt_yet_cost_no_budget(digits):
    """On imbalanced data the first epochs know little more than the largest class: no budget has broken them."""
    opponent = Adversary(new_model(digits), parts(digits)[1], SETTINGS)
    rows = [good(eps=0.02, collapsed=1), good(eps=0.04, collapsed=1), good(eps=0.05), good(eps=0.06, collapsed=1)]
    budgets = [opponent.budget(progress(1.0, rows[:n])) for n in range(5)]
    assert budgets == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.045])
    assert opponent.budget(progress(1.0, [good(eps=0.1, collapsed=1)])) == pytest.approx(0.075)  # the whole budget did


def test_an_adversary_holds_no_state(digits, tmp_path):
    """One that never saw the training says of its rows what the one that watched it said."""
    script = {1: SOUND, 2: (0.9, 0.9, 0.1), 3: (0.1, 0.1, 0.1), 4: (0.9, 0.4, 0.3), 5: (0.9, 0.6, 0.5)}
    make, said, budgets = scripted(script, replace(SETTINGS, ramp=0.0)), [], []

    def opponent(model, val_set):
        watching = make(model, val_set)
        judge = watching.after_epoch

        def after_epoch(row, progress):
            said.append((dict(row), progress, list(progress.rows), judge(row, progress)))
            budgets.append(watching.budget(progress))
            return said[-1][-1]

        watching.after_epoch = after_epoch
        return watching

    model, result = fit(digits, tmp_path, replace(RECIPE, epochs=5), opponent)
    assert [(verdict.keep, verdict.undo) for _, _, _, verdict in said] == [
        (True, False),
        (False, True),
        (False, True),
        (False, False),  # sound, but epoch 1 is better
        (True, False),
    ]
    assert budgets == pytest.approx([0.1, 0.1, 0.075, 0.05625, 0.05625]) and result.epoch == 5
    for (row, seen, rows, verdict), budget in zip(said, budgets, strict=True):
        stranger, at = make(model, parts(digits)[1]), replace(seen, rows=rows)
        assert stranger.budget(at) == budget and stranger.after_epoch(row, at) == verdict


@pytest.mark.parametrize(("left", "kept"), [(0.44, 2), (0.36, 1)])
def test_of_epochs_that_the_images_cannot_tell_apart_the_last_is_kept(digits, tmp_path, left, kept):
    """Fifty images: at one half a share is known to 0.07."""
    _, result = fit(
        digits,
        tmp_path,
        replace(RECIPE, epochs=2),
        scripted({1: (0.9, 0.55, 0.5), 2: (0.9, 0.5, left)}, replace(SETTINGS, ramp=0.0)),
    )
    assert [row["val_margin"] for row in result.rows] == [0.5, left] and result.epoch == kept


def test_epochs_are_ranked_by_what_pgd_on_the_margin_leaves_too(digits, monkeypatch):
    """Of those images alone that PGD on the loss leaves, at the goal."""
    given = []

    def survivors(model, image_set, epsilons, *, steps, seed):
        return (torch.arange(len(image_set)) < 20).expand(len(epsilons), -1)

    def predictions(model, image_set, eps, *, steps, seed, climbed):
        given.append((len(image_set), eps, climbed))
        return torch.where(torch.arange(len(image_set)) < 15, image_set.labels, image_set.labels + 1)

    monkeypatch.setattr(robustness, "pgd_survivors", survivors)
    monkeypatch.setattr(robustness, "pgd_predictions", predictions)
    opponent = Adversary(new_model(digits), parts(digits)[1], SETTINGS)
    figures = opponent.after_epoch({"val_accuracy": 0.9}, progress(done=0.1)).figures
    assert given == [(20, 0.1, attacks.margin_of)]
    assert (figures["val_pgd"], figures["val_margin"]) == (0.4, 0.3)


def test_overfitting_is_judged_at_the_budget_reached(digits, monkeypatch):
    """Above it even a plainly trained model withstands one step and not ten: the ramp's first epochs are no fault."""
    survive = {0.1: False, 0.02: True}  # under PGD, by budget

    def immune(model, image_set, epsilons):
        return image_set.labels.expand(len(epsilons), -1)

    def survivors(model, image_set, epsilons, *, steps, seed):
        return torch.tensor([[survive[round(eps, 6)]] * len(image_set) for eps in epsilons])

    monkeypatch.setattr(robustness, "fgsm_predictions", immune)
    monkeypatch.setattr(robustness, "pgd_survivors", survivors)
    opponent = Adversary(new_model(digits), parts(digits)[1], SETTINGS)
    early = opponent.after_epoch({"val_accuracy": 0.9}, progress(done=0.1)).figures
    assert (early["eps"], early["val_fgsm"], early["val_pgd"], early["gap"]) == (pytest.approx(0.02), 1.0, 0.0, 0.0)
    late = opponent.after_epoch({"val_accuracy": 0.9}, progress(done=0.9)).figures
    assert (early["overfitted"], late["overfitted"], late["gap"]) == (0, 1, 1.0)


def test_a_near_constant_epoch_is_never_kept_however_well_it_withstands(digits, tmp_path, capsys):
    """Ten classes: an answer that is almost always the same is right on 0.15 of all images under any attack."""
    script = {1: (0.3, 0.05, 0.05), 2: (0.22, 0.2, 0.2), 3: (0.5, 0.1, 0.1), 4: (0.4, 0.02, 0.02)}
    _, result = fit(digits, tmp_path, RECIPE, scripted(script, replace(SETTINGS, ramp=0.0)))
    assert [row["collapsed"] for row in result.rows] == [0, 1, 0, 0]
    assert result.epoch == 3
    assert capsys.readouterr().out.count("little better than chance: going back\n") == 1


class Constant(nn.Module):
    """Class 0, always, or for the images that `knows` it the right one."""

    def __init__(self, knows: bool):
        super().__init__()
        self.knows = knows

    def forward(self, x):
        brightness = x.mean((1, 2, 3))
        other = (brightness - 0.5) * 20 if self.knows else brightness * 0 - 1
        return torch.stack([-other, other], dim=1)


def test_collapse_is_judged_against_the_share_of_the_commonest_class():
    """Of 95 % black images: always saying so is right on 95 %, and knows nothing. One of two classes is no chance."""
    labels = (torch.arange(200) % 20 == 0).long()
    val_set = images.ImageSet((255 * labels).to(torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8), labels, ["a", "b"])
    for model, collapsed in ((Constant(knows=False), 1), (Constant(knows=True), 0)):
        opponent = Adversary(model, val_set, SETTINGS)
        accuracy = evaluation.accuracy(model, val_set)
        verdict = opponent.after_epoch({"val_accuracy": accuracy}, progress(0.5, [good()]))
        figures = verdict.figures
        assert accuracy == (0.95 if collapsed else 1.0)
        assert (figures["collapsed"], figures["overfitted"]) == (collapsed, 0)
        assert (verdict.keep, verdict.undo) == (not collapsed, bool(collapsed))
        said = train_robust.worth({**figures, "trained_eps": SETTINGS.eps}, SETTINGS.eps, opponent.chance)
        assert ("no more than guessing (95%): it is no defence" in said) == bool(collapsed)
        assert ("leaves 100.0% of the validation images correct, where guessing gives 95%" in said) != bool(collapsed)


def test_the_worth_of_a_model_is_said_against_guessing_and_the_budget_it_trained_at():
    said = train_robust.worth({"val_pgd": 0.2, "trained_eps": 0.1}, 0.3, 0.1)
    assert "(it was trained at up to 0.1: " in said and said.endswith("where guessing gives 10%")
    for val_pgd, guessing in ((0.1, True), (0.101, False)):
        said = train_robust.worth({"val_pgd": val_pgd, "trained_eps": 0.3}, 0.3, 0.1)
        assert ("it is no defence" in said) == guessing and "trained at" not in said


def test_the_budget_stops_where_nothing_more_is_learnt(digits, tmp_path):
    """Above the goal eps changes what is measured, not what is trained: the weights are the same."""
    short = replace(RECIPE, epochs=2)
    (at_limit, near), (beyond, far) = (
        fit(digits, tmp_path, short, against(replace(SETTINGS, goal=0.05, eps=eps))) for eps in (0.05, 0.3)
    )
    assert same(at_limit, beyond)
    assert [row["eps"] for row in near.rows] == [row["eps"] for row in far.rows]
    assert far.rows[-1]["eps"] == 0.05 and far.rows[-1]["val_pgd"] < near.rows[-1]["val_pgd"]
    assert far.rows[-1]["val_margin"] == near.rows[-1]["val_margin"] <= near.rows[-1]["val_pgd"]


def test_no_sound_epoch_is_an_error_that_says_what_to_turn(digits, tmp_path):
    with pytest.raises(UserError, match="lower eps"):
        fit(digits, tmp_path, replace(RECIPE, epochs=1), against(replace(SETTINGS, overfitting_gap=-1.0)))
    broken = {1: (0.9, 0.9, 0.0), 2: (0.1, 0.1, 0.1)}
    with pytest.raises(UserError, match=r"lower eps, or raise train_robust\.noise"):
        fit(digits, tmp_path, replace(RECIPE, epochs=2), scripted(broken))
    _, result = fit(digits, tmp_path / "sound", replace(RECIPE, epochs=2), scripted({1: SOUND, 2: broken[2]}))
    assert result.epoch == 1  # one sound epoch is enough


def test_plain_fgsm_at_a_large_budget_does_overfit_catastrophically(digits, tmp_path):
    """The study's own recipe, for real: accuracy under its own step far above accuracy under PGD, and noticed."""
    studys = replace(SETTINGS, eps=0.35, goal=0.35, attack="fgsm", noise=0.0, fraction=1.0, ramp=0.0, pgd_steps=10)
    rows = []
    recipe = replace(RECIPE, epochs=8, learning_rate=0.2)
    try:
        _, result = fit(
            digits, tmp_path, recipe, against(studys), log=lambda found: rows.__setitem__(slice(None), found)
        )
    except UserError:  # no epoch was sound
        pass
    else:
        assert not (rows[result.epoch - 1]["overfitted"] or rows[result.epoch - 1]["collapsed"])
    assert any(row["overfitted"] or row["collapsed"] for row in rows)


def test_overfitting_that_is_not_undone_stays_and_the_last_epoch_is_kept(digits, tmp_path, capsys):
    """As the reproduced study trained: marked, not mended."""
    script = {1: (0.9, 0.55, 0.5), 2: (0.9, 0.9, 0.0), 3: (0.9, 0.9, 0.0)}
    opponent = scripted(script, replace(SETTINGS, undo_overfitting=False))
    _, result = fit(digits, tmp_path, replace(RECIPE, epochs=3), opponent)
    assert result.epoch == 3 and [row["overfitted"] for row in result.rows] == [0, 1, 1]
    assert [row["eps"] for row in result.rows][-1] == SETTINGS.eps  # the budget did not shrink
    assert "catastrophic overfitting\n" in capsys.readouterr().out
