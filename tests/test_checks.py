"""The audit passes a sound model, and each fault is flagged by the check meant for it."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.common import attacks, checks, images, models, training
from stages.common.subject import Subject

EPS = 0.1
RECIPE = training.Recipe(8, 64, 0.4, 0.85, 1e-3, 0.2, 0.1, False, 1, None, False, False, 0)


def trained(digits, work, recipe, adversary=None):
    torch.manual_seed(recipe.seed)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[16, 16])
    model.adapt(images.to_float(digits.images))
    train, val = digits.take(torch.arange(1400)), digits.take(torch.arange(1400, 1600))
    training.train(model, train, val, recipe, adversary=adversary, resume_in=work, name="digits")
    return model


@pytest.fixture(scope="module")
def sound(digits, tmp_path_factory):
    """A classifier of digits, trained for a few epochs on N-FGSM examples."""
    adversary = training.Adversary(EPS, EPS, "n-fgsm", 1.0, 2.0, 0.5, 0.3, True, 3, 50)
    return trained(digits, tmp_path_factory.mktemp("work"), RECIPE, adversary)


@pytest.fixture(scope="module")
def plain(digits, tmp_path_factory):
    """Another one, trained on clean images."""
    return trained(digits, tmp_path_factory.mktemp("work"), replace(RECIPE, seed=1))


def subject(model, digits, **changes):
    given = {
        "model": model,
        "other": model,
        "defended": True,
        "image_set": digits.take(torch.arange(1600, 1797)),
        "target": 3,
        "eps": EPS,
        "epsilons": (0.0, 0.02, 0.05, 0.2),
        "pgd_steps": 10,
        "restarts": 2,
        "square_images": 50,
        "square_queries": 50,
        "seed": 0,
        "device": torch.device("cpu"),
    }
    return Subject(**(given | changes))


def failed(asked) -> set[str]:
    return {name for name, check in checks.CHECKS.items() if not check(asked).passed}


def test_a_sound_model_passes_all(sound, plain, digits):
    """Asked well within what it was trained for, so that no verdict hangs on how a processor rounds."""
    asked = subject(sound, digits, other=plain, eps=EPS / 2)
    assert checks._share(asked.correct) > 0.85
    findings = {name: check(asked) for name, check in checks.CHECKS.items()}
    assert {name: finding.seen for name, finding in findings.items() if not finding.passed} == {}
    assert all(finding.seen for finding in findings.values())


class Wrapped(nn.Module):
    """A model behind something that spoils it."""

    def __init__(self, model, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.model, self.before, self.after, self.classes = model, before, after, model.classes

    def features(self, x):
        return self.model.features(self.before(x))

    def head(self, features):
        return self.after(self.model.head(features))

    def forward(self, x):
        return self.head(self.features(x))


def test_saturated_logits_are_flagged(sound, digits):
    """The defence by saturation: logits so large that float32's softmax is exactly 1 and its gradient 0."""
    assert "gradients_not_zero" in failed(subject(Wrapped(sound, after=lambda z: z * 1e4), digits))


def test_a_quantised_input_is_flagged(sound, digits):
    flagged = failed(subject(Wrapped(sound, before=lambda x: (x * 8).round() / 8), digits))
    assert {"gradients_not_zero", "fgsm_raises_loss", "pgd_unbounded_reaches_zero"} <= flagged


def test_a_random_model_is_flagged(sound, digits):
    assert "forward_repeats" in failed(subject(Wrapped(sound, before=lambda x: x + 0.1 * torch.randn_like(x)), digits))


def test_a_turned_sign_is_flagged(sound, digits, monkeypatch):
    """The reproduced study's targeted attack added the gradient that it had to subtract."""
    step = attacks._step
    monkeypatch.setattr(attacks, "_step", lambda x, d, eps, targeted: step(x, d, eps, not targeted))
    assert {"fgsm_raises_loss", "targeted_lowers_loss", "noise_weaker_than_fgsm"} <= failed(subject(sound, digits))


def test_a_clamp_to_another_range_is_flagged(sound, digits, monkeypatch):
    """The reproduced study clamped images of [-1, 1] to [0, 1]; here images of [0, 1] to [0.5, 1]."""
    monkeypatch.setattr(
        attacks, "_step", lambda x, d, eps, targeted: (x + (-eps if targeted else eps) * d).clamp(0.5, 1)
    )
    assert {"eps_zero_is_clean", "budget_and_range_kept"} <= failed(subject(sound, digits))


def test_a_missing_clamp_is_flagged(sound, digits, monkeypatch):
    monkeypatch.setattr(attacks, "_step", lambda x, d, eps, targeted: x + (-eps if targeted else eps) * d)
    assert checks.budget_and_range_kept(subject(sound, digits)).passed is False


def test_an_attack_in_train_mode_is_flagged(sound, digits, monkeypatch):
    @contextmanager
    def careless(model, *, train=False):
        model.train()
        yield
        model.eval()

    state = {key: value.clone() for key, value in sound.state_dict().items()}
    monkeypatch.setattr(attacks, "frozen", careless)
    finding = checks.model_untouched(subject(sound, digits))
    sound.load_state_dict(state)
    assert not finding.passed


def test_an_attack_that_a_stranger_or_blind_search_beats_is_flagged(sound, digits, monkeypatch):
    """Gradients that point nowhere: examples of the unspoilt model and Square both break more than PGD does."""
    spoilt = Wrapped(sound)
    gradient = attacks.input_gradient

    def masked(model, x, y):
        return torch.randn_like(x) if model is spoilt else gradient(model, x, y)

    monkeypatch.setattr(attacks, "input_gradient", masked)
    asked = subject(spoilt, digits, other=sound, eps=0.2, square_queries=100)
    flagged = {name for name in ("transfer_weaker_than_pgd", "square_weaker_than_pgd") if failing(name, asked)}
    assert flagged == {"transfer_weaker_than_pgd", "square_weaker_than_pgd"}


def failing(check, asked) -> bool:
    return not checks.CHECKS[check](asked).passed


def test_a_softmax_of_one_is_flagged(sound, digits):
    assert failing("softmax_not_saturated", subject(Wrapped(sound, after=lambda z: z * 1000), digits))


def test_a_curve_that_rises_and_a_step_that_overshoots_are_flagged(sound, digits):
    asked = subject(sound, digits)
    asked.__dict__["fgsm"] = {0.02: 0.1, 0.05: 0.3, 0.1: 0.5, 0.2: 0.6}
    asked.__dict__["fgsm_worst"] = {0.02: 0.1, 0.05: 0.1, 0.1: 0.1, 0.2: 0.1}
    assert failing("fgsm_falls_with_eps", asked)
    finding = checks.fgsm_close_to_worst_case(asked)
    assert finding.verdict == "warn" and "0.400" in finding.seen


def test_restarts_that_still_find_something_are_flagged(sound, digits, monkeypatch):
    asked = subject(sound, digits)
    asked.__dict__["pgd_restarted"] = torch.zeros(len(asked.image_set), dtype=torch.bool)
    assert failing("pgd_restarts_agree", asked)


@pytest.mark.parametrize(("survivors", "verdict"), [(96, "pass"), (92, "warn"), (80, "FAIL")])
def test_a_cross_entropy_that_flatters_is_flagged(sound, digits, survivors, verdict):
    asked = subject(sound, digits, image_set=digits.take(torch.arange(100)))
    asked.__dict__["pgd_restarted"] = torch.ones(100, dtype=torch.bool)
    asked.__dict__["strongest"] = torch.arange(100) < survivors
    assert checks.pgd_close_to_margins(asked).verdict == verdict


def test_the_margins_break_what_a_flat_cross_entropy_does_not(sound, digits):
    """A softmax of exactly 1 has no gradient, so that PGD finds nothing; the margin still has one."""
    finding = checks.pgd_close_to_margins(subject(Wrapped(sound, after=lambda z: z * 1e6), digits, eps=0.2))
    assert finding.verdict == "FAIL"


def test_a_pgd_too_weak_to_break_a_plain_model_is_flagged(sound, digits, monkeypatch):
    asked = subject(sound, digits, defended=False)
    assert failing("undefended_is_broken", asked)  # this one is robust, and says that it is not
    assert not failing("undefended_is_broken", subject(sound, digits))


def test_a_target_never_hit_is_flagged(sound, digits, monkeypatch):
    step = attacks._step
    monkeypatch.setattr(attacks, "_step", lambda x, d, eps, targeted: step(x, d, eps, not targeted))
    assert failing("target_is_hit", subject(sound, digits))


def test_a_bent_loss_is_warned_of(sound, digits):
    """Gradients that turn within the budget: the sign of one-step overfitting."""
    bent = Wrapped(sound, before=lambda x: x + 0.05 * torch.sin(400 * x))
    finding = checks.gradients_agree_nearby(subject(bent, digits))
    assert finding.verdict == "warn"


def test_an_aimless_gradient_is_flagged(sound, digits, monkeypatch):
    monkeypatch.setattr(attacks, "input_gradient", lambda model, x, y: torch.randn_like(x))
    assert {"fgsm_raises_loss", "targeted_lowers_loss"} <= failed(subject(sound, digits))


def test_iterated_attacks_that_lose_their_way_are_flagged(sound, digits, monkeypatch):
    def lazy(model, images, labels, eps, *, steps, **_):
        return images

    monkeypatch.setattr(attacks, "pgd", lazy)
    assert {"pgd_at_most_fgsm", "pgd_unbounded_reaches_zero"} <= failed(subject(sound, digits))


@pytest.mark.parametrize(
    ("check", "fgsm", "pgd", "seen"),
    [
        ("fgsm_close_to_pgd", 0.45, 0.0, "0.450"),  # the study's own recipe under one step and under ten
        ("fgsm_below_clean", 1.0, 1.0, "1.000"),
        ("pgd_at_most_fgsm", 0.2, 0.3, "0.300"),
    ],
)
def test_accuracies_that_contradict_each_other_are_flagged(sound, digits, check, fgsm, pgd, seen):
    asked = subject(sound, digits)
    asked.__dict__["fgsm"] = dict.fromkeys(asked.budgets, fgsm)
    asked.__dict__["pgd"] = dict.fromkeys(asked.budgets, pgd)
    asked.__dict__["correct"] = torch.arange(len(asked.image_set)) < 100
    finding = checks.CHECKS[check](asked)
    assert not finding.passed and seen in finding.seen


def test_pgd_that_rises_with_eps_or_has_not_converged_is_flagged(sound, digits, monkeypatch):
    asked = subject(sound, digits)
    asked.__dict__["pgd"] = {eps: eps for eps in asked.budgets}
    assert not checks.pgd_falls_with_eps(asked).passed
    asked.__dict__["pgd"] = dict.fromkeys(asked.budgets, 0.4)
    monkeypatch.setattr(Subject, "pgd_at", lambda self, eps, steps: 0.5 - steps / 100)
    assert not checks.pgd_converged(asked).passed


def test_the_studys_own_training_is_flagged(digits, tmp_path):
    """Plain FGSM at a large budget until it overfits: one step finds nothing, ten steps find everything."""
    recipe = training.Recipe(10, 64, 0.4, 0.85, 0.0, 0.2, 0.0, False, 1, None, False, False, 0)
    adversary = training.Adversary(0.3, 0.3, "fgsm", 1.0, 0.0, 0.0, 0.999, True, 3, 50)
    model = trained(digits, tmp_path, recipe, adversary)
    asked = subject(model, digits, eps=0.3)
    assert asked.pgd[0.3] < 0.15 < asked.fgsm[0.3]
    assert "fgsm_close_to_pgd" in failed(asked)
