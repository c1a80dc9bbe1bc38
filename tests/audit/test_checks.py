"""The audit passes a sound model, each fault is flagged by the check meant for it, and none passes on nothing."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn

from stages.common import attacks
from stages.common.audit import attack_checks, margins, square
from stages.common.audit.certificate import Certificate
from stages.common.audit.checks import CHECKS
from stages.common.audit.finding import VERDICTS, Finding, asked_if
from stages.common.audit.subject import Subject
from stages.common.audit.verdicts import figures_of
from stages.common.images import ImageSet
from tests.small import RECIPE, SETTINGS, against, fit, new_model

EPS = SETTINGS.eps


def verdicts(asked) -> dict[str, str]:
    return {name: check(asked).verdict for name, check in CHECKS.items()}


def flagged(asked) -> set[str]:
    return {name for name, verdict in verdicts(asked).items() if verdict in ("warn", "FAIL")}


def failing(check, asked) -> bool:
    return CHECKS[check](asked).passed is False


def forged(asked, **measured):
    """A subject whose accuracies are these, instead of what an attack would find."""
    vars(asked).update(measured)
    return asked


def test_a_sound_model_passes_all(sound, plain, subject):
    """Asked well within what it was trained for, so that no verdict hangs on how a processor rounds."""
    asked, before = subject(sound, other=plain, eps=EPS / 2), deepcopy(sound.state_dict())
    assert float(asked.correct.double().mean()) > 0.85
    findings = {name: check(asked) for name, check in CHECKS.items()}
    wanted = dict.fromkeys(findings, "pass") | {"undefended_is_broken": "n/a"}
    assert {name: (f.verdict, f.seen) for name, f in findings.items() if f.verdict != wanted[name]} == {}
    assert all(finding.seen for finding in findings.values())
    assert all(torch.equal(value, before[key]) for key, value in sound.state_dict().items())


class Wrapped(nn.Module):
    """A model behind something that spoils it."""

    def __init__(self, model, before=lambda x: x, after=lambda x: x):
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, x):
        return self.after(self.model(self.before(x)))


def test_saturated_logits_are_flagged(sound, subject):
    """The defence by saturation: logits so large that float32's softmax is exactly 1 and its gradient 0."""
    asked = subject(Wrapped(sound, after=lambda z: z * 1e4))
    assert failing("gradients_not_zero", asked) and failing("softmax_not_saturated", asked)


def test_a_quantised_input_is_flagged(sound, subject):
    found = flagged(subject(Wrapped(sound, before=lambda x: (x * 8).round() / 8)))
    assert {"gradients_not_zero", "fgsm_raises_loss", "pgd_unbounded_reaches_zero"} <= found


def test_attacks_that_stand_still_miss_what_is_planted(sound, subject, monkeypatch):
    """Which sixty are planted is the seed's: of a small net some are too easy, and the check says so."""
    asked = [subject(sound, seed=seed) for seed in range(5)]
    passed = [each for each in asked if CHECKS["planted_examples_found"](each).passed]
    assert passed
    monkeypatch.setattr(attacks.Linf, "step", lambda self, attacked, gradient, size: attacked)
    assert all(failing("planted_examples_found", each) for each in passed)


def test_a_random_model_is_flagged(sound, subject):
    assert failing("forward_repeats", subject(Wrapped(sound, before=lambda x: x + 0.1 * torch.randn_like(x))))


def test_a_turned_sign_is_flagged(sound, subject, monkeypatch):
    """The reproduced study's targeted attack added the gradient that it had to subtract."""
    step = attacks.step
    monkeypatch.setattr(attacks, "step", lambda x, d, eps, targeted: step(x, d, eps, not targeted))
    asked = subject(sound)
    for check in ("fgsm_raises_loss", "targeted_lowers_loss", "noise_weaker_than_fgsm", "target_is_hit"):
        assert failing(check, asked), check


def test_a_clamp_to_another_range_is_flagged(sound, subject, monkeypatch):
    """The reproduced study clamped images of [-1, 1] to [0, 1]; here images of [0, 1] to [0.5, 1]."""
    monkeypatch.setattr(
        attacks, "step", lambda x, d, eps, targeted: (x + (-eps if targeted else eps) * d).clamp(0.5, 1)
    )
    asked = subject(sound)
    assert failing("eps_zero_is_clean", asked) and failing("budget_and_range_kept", asked)


@pytest.mark.parametrize("fault", ["no clamp", "too far", "NaN"])
def test_an_attack_that_leaves_its_bounds_is_flagged(sound, subject, monkeypatch, fault):
    faulty = {
        "no clamp": lambda x, d, eps, targeted: x + (-eps if targeted else eps) * d,
        "too far": lambda x, d, eps, targeted: (x + 1.01 * eps * d).clamp(0, 1),
        "NaN": lambda x, d, eps, targeted: x * torch.nan,
    }
    assert not failing("budget_and_range_kept", subject(sound))
    monkeypatch.setattr(attacks, "step", faulty[fault])
    assert failing("budget_and_range_kept", subject(sound))


def test_a_pgd_that_forgets_its_projection_is_flagged(sound, subject, monkeypatch):
    monkeypatch.setattr(attacks.Linf, "step", lambda ball, x, slope, size: (x + size * slope.sign()).clamp(0, 1))
    assert failing("budget_and_range_kept", subject(sound))


@pytest.mark.parametrize("module", [attacks, margins, square], ids=["attacks", "margins", "square"])
def test_an_attack_in_train_mode_is_flagged(digits, subject, monkeypatch, module):
    @contextmanager
    def careless(model):
        model.train()
        yield
        model.eval()

    monkeypatch.setattr(module, "frozen", careless)
    model = new_model(digits).eval()
    finding = CHECKS["model_untouched"](subject(model))
    assert finding.verdict == "FAIL" and "running_mean" in finding.seen


def spoil_flag(model):
    model.linear.weight.requires_grad_(False)


def spoil_mode(model):
    model.first_norm[0].train(not model.first_norm[0].training)


def spoil_buffer(model):
    model.first_norm[0].running_var.mul_(1.0001)


def spoil_gradient(model):
    model.linear.weight.grad = torch.zeros_like(model.linear.weight)


def spoil_weight(model):
    model.linear.weight.data[0, 0] += 1e-6


SPOILS = {
    spoil_flag: "linear.weight.requires_grad",
    spoil_mode: "first_norm.0.training",
    spoil_buffer: "first_norm.0.running_var",
    spoil_gradient: "linear.weight.grad",
    spoil_weight: "linear.weight",
}
ATTACKING = {  # where the audit calls an attack, and whether this call is of the kind that is to be spoilt
    "FGSM": (attacks, "fgsm", lambda options: not options.get("targeted", False)),
    "targeted FGSM": (attacks, "fgsm", lambda options: options.get("targeted", False)),
    "PGD": (attacks, "pgd", lambda options: True),
    "margins": (attack_checks, "multi_targeted", lambda options: True),
    "Square": (attack_checks, "square_attack", lambda options: True),
}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
@pytest.mark.parametrize("attack", ATTACKING)
def test_an_attack_that_leaves_a_trace_is_flagged(digits, subject, monkeypatch, attack, spoil):
    place, name, meant = ATTACKING[attack]
    sound_attack = getattr(place, name)

    def spoiling(model, *given, **options):
        found = sound_attack(model, *given, **options)
        if meant(options):
            spoil(model)
        return found

    model = new_model(digits).eval()
    monkeypatch.setattr(place, name, spoiling)
    finding = CHECKS["model_untouched"](subject(model))
    assert (
        finding.verdict == "FAIL" and finding.seen == f"1 tensors and flags changed by attacking, {SPOILS[spoil]} first"
    )


def test_a_gradient_that_an_attack_adds_to_is_flagged(digits, subject, monkeypatch):
    """One that the model carried before: it is another one now, in the same place."""
    model, pgd = new_model(digits).eval(), attacks.pgd
    spoil_gradient(model)

    def adding(*given, **options):
        model.linear.weight.grad += 1
        return pgd(*given, **options)

    monkeypatch.setattr(attacks, "pgd", adding)
    assert CHECKS["model_untouched"](subject(model)).verdict == "FAIL"


@pytest.mark.parametrize("spoil", [*SPOILS, nn.Module.train], ids=lambda spoil: spoil.__name__)
def test_what_a_model_carried_before_is_no_trace(digits, subject, spoil):
    """Left-over gradients, mixed modes and frozen weights of its own are given back as they came."""
    model = new_model(digits).eval()
    spoil(model)
    assert CHECKS["model_untouched"](subject(model)).verdict == "pass"


class Saturated(nn.Module):
    """Two classes by brightness, with no gradient at images of which the upper left pixel is white."""

    def forward(self, x):
        margin = 20 * (x.mean((1, 2, 3)) - 0.5)
        margin = torch.where(x[:, 0, 0, 0] == 1, margin.detach().sign() * 1e4, margin)
        return torch.stack([-margin, margin], dim=1)


def test_a_gradient_is_asked_of_correct_images_only(subject):
    """What is misclassified already needs no attack, so that its gradient masks nothing."""
    pixels = torch.full((4, 1, 8, 8), 200, dtype=torch.uint8)
    pixels[2:, 0, 0, 0] = 255
    for labels, seen in (([1, 1, 0, 0], "0 of 2 correct"), ([1, 1, 1, 0], "1 of 3 correct"), ([0] * 4, "no image is")):
        asked = subject(Saturated(), image_set=ImageSet(pixels, torch.tensor(labels), ["dark", "bright"]), target=0)
        finding = CHECKS["gradients_not_zero"](asked)
        assert finding.seen.startswith(seen) and finding.passed == {"0": True, "1": False, "n": None}[seen[0]]


def test_an_attack_that_a_stranger_or_blind_search_beats_is_flagged(sound, subject, monkeypatch):
    """Steps that go nowhere: examples of the unspoilt model and Square both break more than PGD does."""
    spoilt = Wrapped(sound)
    hunt = attacks.hunt

    def lost(model, labels, value, ball, sizes, start):
        sizes = [0.0] * len(sizes) if model is spoilt else sizes
        return hunt(model, labels, value, ball, sizes, start)

    monkeypatch.setattr(attacks, "hunt", lost)
    asked = subject(spoilt, other=sound, eps=0.2, square_queries=100)
    assert failing("transfer_weaker_than_pgd", asked) and failing("square_weaker_than_pgd", asked)


def test_a_curve_that_rises_and_a_step_that_overshoots_are_flagged(sound, subject):
    rising = {0.02: 0.1, 0.05: 0.3, 0.1: 0.5, 0.2: 0.6}
    asked = forged(subject(sound), fgsm=rising, fgsm_worst=dict.fromkeys(rising, 0.1))
    assert failing("fgsm_falls_with_eps", asked)
    finding = CHECKS["fgsm_close_to_worst_case"](asked)
    assert finding.verdict == "warn" and "0.400" in finding.seen


def test_restarts_that_still_find_something_are_flagged(sound, subject):
    none = torch.zeros(197, dtype=torch.bool)
    assert failing("pgd_restarts_agree", forged(subject(sound), pgd_restarted=none))


@pytest.mark.parametrize(("broken", "verdict"), [(0, "pass"), (1, "warn"), (3, "warn"), (4, "FAIL"), (100, "FAIL")])
def test_a_certificate_that_an_attack_breaks_is_flagged(sound, subject, broken, verdict):
    finding = CHECKS["certificate_not_contradicted"](subject(sound, certificate=Certificate(100, broken, by_chance=3)))
    assert finding.verdict == verdict and finding.seen.startswith(f"{broken} of 100 images broken within their cert")
    assert CHECKS["certificate_not_contradicted"](subject(sound, certificate=None)).verdict == "n/a"


@pytest.mark.parametrize(("survivors", "verdict"), [(96, "pass"), (92, "warn"), (80, "FAIL")])
def test_a_cross_entropy_that_flatters_is_flagged(sound, digits, subject, survivors, verdict):
    asked = subject(sound, image_set=digits.take(torch.arange(100)))
    forged(asked, pgd_restarted=torch.ones(100, dtype=torch.bool), strongest=torch.arange(100) < survivors)
    assert CHECKS["pgd_close_to_margins"](asked).verdict == verdict


def test_the_margins_break_what_a_flat_cross_entropy_does_not(sound, subject):
    """A softmax of exactly 1 has no gradient, so that PGD finds nothing; the margin still has one."""
    finding = CHECKS["pgd_close_to_margins"](subject(Wrapped(sound, after=lambda z: z * 1e6), eps=0.2))
    assert finding.verdict == "FAIL"


def test_a_pgd_too_weak_to_break_a_plain_model_is_flagged(sound, subject):
    """This one is robust, and says that it is not."""
    assert failing("undefended_is_broken", subject(sound, defended=False))
    weak = forged(subject(sound, defended=False), correct=torch.arange(197) < 1)
    assert not failing("undefended_is_broken", weak)  # an image or two in a hundred may stand


def test_a_bent_loss_is_warned_of(sound, subject):
    """Gradients that turn within the budget: the sign of one-step overfitting."""
    bent = Wrapped(sound, before=lambda x: x + 0.05 * torch.sin(400 * x))
    finding = CHECKS["gradients_agree_nearby"](subject(bent))
    assert finding.verdict == "warn"


def test_an_aimless_gradient_is_flagged(sound, subject, monkeypatch):
    monkeypatch.setattr(attacks, "input_gradient", lambda model, x, y: torch.randn_like(x))
    asked = subject(sound)
    assert failing("fgsm_raises_loss", asked) and failing("targeted_lowers_loss", asked)


def test_what_the_largest_budget_breaks_is_broken_without_a_bound_too(sound, subject, monkeypatch):
    """From noise over the whole of [0, 1] there may be no gradient to follow, where nothing is masked."""
    asked = subject(sound)
    assert not asked.pgd_once[asked.budgets[-1]].all()
    monkeypatch.setattr(Subject, "pgd_survivors", lambda self, eps, steps, seed, among: among)  # loses its way
    left = asked.pgd_once[asked.budgets[-1]].double().mean()
    assert f"leaves {left:.3f}" in CHECKS["pgd_unbounded_reaches_zero"](asked).seen


def test_iterated_attacks_that_lose_their_way_are_flagged(sound, subject, monkeypatch):
    monkeypatch.setattr(attacks, "hunt", lambda model, labels, value, ball, sizes, start: ball.images)
    asked = subject(sound)
    assert failing("pgd_at_most_fgsm", asked) and failing("pgd_unbounded_reaches_zero", asked)


@pytest.mark.parametrize(
    ("check", "fgsm", "pgd", "seen"),
    [
        ("fgsm_close_to_pgd", 0.45, 0.0, "0.450"),  # the study's own recipe under one step and under ten
        ("fgsm_below_clean", 1.0, 1.0, "1.000"),
        ("pgd_at_most_fgsm", 0.2, 0.3, "0.300"),
    ],
)
def test_accuracies_that_contradict_each_other_are_flagged(sound, subject, check, fgsm, pgd, seen):
    asked = subject(sound)
    forged(asked, fgsm=dict.fromkeys(asked.budgets, fgsm), pgd=dict.fromkeys(asked.budgets, pgd))
    finding = CHECKS[check](forged(asked, correct=torch.arange(197) < 100))
    assert finding.verdict == "FAIL" and seen in finding.seen


def test_pgd_that_rises_with_eps_or_has_not_converged_is_flagged(sound, subject, monkeypatch):
    asked = subject(sound)
    assert failing("pgd_falls_with_eps", forged(asked, pgd={eps: 0.9 + eps for eps in asked.budgets}))
    monkeypatch.setattr(Subject, "pgd_at", lambda self, eps, steps: 0.5 - steps / 100)
    assert failing("pgd_converged", forged(asked, pgd=dict.fromkeys(asked.budgets, 0.4)))


def test_the_studys_own_training_is_flagged(digits, subject, tmp_path):
    """Plain FGSM at a large budget until it overfits: one step finds nothing, ten steps find everything."""
    recipe = replace(RECIPE, epochs=10, weight_decay=0.0, label_smoothing=0.0)
    studys = replace(SETTINGS, eps=0.3, goal=0.3, attack="fgsm", fraction=1.0, ramp=0.0, overfitting_gap=0.999)
    model, _ = fit(digits, tmp_path, recipe, against(studys))
    asked = subject(model, eps=0.3)
    assert asked.pgd[0.3] < 0.15 < asked.fgsm[0.3]
    assert failing("fgsm_close_to_pgd", asked)


class OneAnswer(nn.Module):
    """3 whatever the image: its logits hang on the image a little, or not at all."""

    def __init__(self, model, slope):
        super().__init__()
        self.model, self.slope = model, slope

    def forward(self, x):
        return self.slope * self.model(x) + torch.nn.functional.one_hot(torch.tensor(3), 10)


@pytest.fixture(scope="module")
def uneven(digits):
    """150 images of a 3, and five of each other digit."""
    chosen = [(digits.labels == label).nonzero().squeeze(1)[: 150 if label == 3 else 5] for label in range(10)]
    return digits.take(torch.cat(chosen))


OF_NO_LEARNING = {
    "eps_zero_is_clean",
    "budget_and_range_kept",
    "model_untouched",
    "forward_repeats",
    "certificate_not_contradicted",
}


@pytest.mark.parametrize("slope", [0.0, 1e-3], ids=["constant", "nearly constant"])
@pytest.mark.parametrize("defended", [True, False])
def test_a_model_that_has_learnt_the_larger_class_alone_is_named_as_that(sound, subject, uneven, slope, defended):
    """Its accuracy is 0.77, under every attack too, without a gradient to follow: that is no masked gradient."""
    asked = subject(OneAnswer(sound, slope), image_set=uneven, defended=defended)
    findings = {name: check(asked) for name, check in CHECKS.items()}
    assert {name for name, found in findings.items() if found.passed} == OF_NO_LEARNING
    named = findings.pop("beats_the_commonest_class")
    assert named.verdict == "FAIL" and "0.769, the commonest class alone 0.769; balanced 0.100" in named.seen
    assert all(found.verdict == "n/a" for name, found in findings.items() if name not in OF_NO_LEARNING)
    without = {
        found.seen for name, found in findings.items() if found.passed is None and name != "undefended_is_broken"
    }
    assert without == {"it has learnt nothing: see beats_the_commonest_class"}


def test_a_guess_is_named_as_that(sound, subject):
    shuffled = Wrapped(sound, after=lambda z: z.roll(1, 0))  # another image's answers
    assert failing("beats_the_commonest_class", subject(shuffled))


def test_a_sound_model_is_one_where_classes_differ_in_size(sound, subject, uneven):
    found = verdicts(subject(sound, image_set=uneven, eps=EPS / 2))
    assert found["beats_the_commonest_class"] == "pass"
    assert {name for name in found if found[name] == "n/a"} == {"undefended_is_broken"}


def test_images_of_one_class_tell_nothing_of_learning_and_nothing_else_waits_for_it(sound, subject, digits):
    asked = subject(sound, image_set=digits.take((digits.labels == 5).nonzero().squeeze(1)[-20:]))
    assert CHECKS["beats_the_commonest_class"](asked).verdict == "n/a"
    assert CHECKS["gradients_not_zero"](asked).verdict == "pass"


def test_a_model_that_knows_the_classes_and_is_no_more_accurate_than_one_answer_is_warned_of(sound, subject, uneven):
    """As one that is trained to find the rare ones: it has learnt, and its accuracy does not show it."""
    eager = Wrapped(sound, after=lambda z: z - 5 * torch.nn.functional.one_hot(torch.tensor(3), 10))
    asked = subject(eager, image_set=uneven)
    finding = CHECKS["beats_the_commonest_class"](asked)
    assert finding.verdict == "warn" and float(asked.correct.double().mean()) < 0.75
    assert CHECKS["gradients_not_zero"](asked).passed is not None


BUDGETS = {
    "budget_and_range_kept",
    "pgd_at_most_fgsm",
    "pgd_falls_with_eps",
    "fgsm_falls_with_eps",
    "target_is_hit",
}
AT_EPS = {
    "fgsm_below_clean",
    "noise_weaker_than_fgsm",
    "fgsm_close_to_pgd",
    "fgsm_close_to_worst_case",
    "pgd_converged",
    "pgd_restarts_agree",
    "pgd_close_to_margins",
    "transfer_weaker_than_pgd",
    "square_weaker_than_pgd",
    "gradients_agree_nearby",
    "planted_examples_found",
}
NOTHING = {  # what a subject lacks, and the checks that have nothing to look at then
    "eps": ({"eps": 0.0}, AT_EPS),
    "budgets": ({"eps": 0.0, "epsilons": (0.0,)}, AT_EPS | BUDGETS),
    "restarts": ({"restarts": 1}, {"pgd_restarts_agree"}),
    "a smaller budget": ({"epsilons": (0.0, 0.2)}, {"fgsm_close_to_worst_case"}),
    "a defence": ({"defended": False}, set()),
}


@pytest.mark.parametrize(("changes", "without"), NOTHING.values(), ids=NOTHING)
def test_a_check_with_nothing_to_look_at_is_not_applicable(digits, sound, subject, changes, without):
    """It neither passes nor fails, and says why; every other check looks at something, and none raises."""
    asked = subject(sound, image_set=digits.take(torch.arange(1600, 1640)), **changes)
    if asked.defended:
        without = without | {"undefended_is_broken"}
    findings = {name: check(asked) for name, check in CHECKS.items()}
    assert {name for name, finding in findings.items() if finding.verdict == "n/a"} == without
    assert all((finding.passed is None) == (name in without) for name, finding in findings.items())
    assert all(findings[name].seen for name in without)


def test_without_a_correct_image_no_check_raises_and_none_follows_gradients(sound, digits, subject):
    few = digits.take(torch.arange(1600, 1640))
    predicted = sound(few.images / 255).argmax(1)
    asked = subject(sound, image_set=ImageSet(few.images, (predicted + 1) % 10, few.classes))
    assert not asked.correct.any()
    found = verdicts(asked)
    assert {"gradients_not_zero", "pgd_unbounded_reaches_zero"} <= {name for name in found if found[name] == "n/a"}


def test_what_is_not_applicable_is_in_no_count(sound, digits, subject):
    asked = subject(sound, image_set=digits.take(torch.arange(1600, 1620)))
    made = {"one": "pass", "two": "n/a", "three": "warn", "four": "FAIL", "five": "n/a", "six": "pass"}
    figures = figures_of(asked, [{"check": check, "verdict": verdict} for check, verdict in made.items()])
    assert {check: figures.get(check) for check in made} == dict(one=1, two=None, three=0, four=0, five=None, six=1)
    assert (figures["passed"], figures["warned"], figures["failed"]) == (2, 1, 1)
    assert set(VERDICTS) == {"pass", "warn", "FAIL"}


def test_a_condition_keeps_its_check_s_name_and_says_why_it_was_not_made(sound, subject):
    @asked_if(lambda subject: subject.restarts > 2, "too few restarts")
    def own(subject):
        """What it asks."""
        return Finding(True, "looked")

    assert (own.__name__, own.__doc__) == ("own", "What it asks.")
    assert own(subject(sound)) == Finding(None, "too few restarts")
    assert own(subject(sound, restarts=3)) == Finding(True, "looked")
