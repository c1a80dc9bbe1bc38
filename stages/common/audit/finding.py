"""What a check gives, and when it is not applicable."""

from collections.abc import Callable
from functools import wraps
from typing import NamedTuple

from stages.common.audit.subject import Subject

VERDICTS = {"pass": "passed", "warn": "warned", "FAIL": "failed"}  # those that are counted, and under which name


class Finding(NamedTuple):
    """Whether the check passed, what it saw, and what that means when it did not. None: it had nothing to look at, and
    neither passed nor failed. A warning does not fail an audit.
    """

    passed: bool | None
    seen: str
    otherwise: str = ""
    warning: bool = False

    @property
    def verdict(self) -> str:
        """pass, warn, FAIL or n/a."""
        if self.passed is None:
            return "n/a"
        return "pass" if self.passed else "warn" if self.warning else "FAIL"


Check = Callable[[Subject], Finding]


def asked_if(condition: Callable[[Subject], bool], otherwise: str) -> Callable[[Check], Check]:
    """A check that is not applicable where `condition` does not hold; `otherwise` says why."""

    def decorate(check: Check) -> Check:
        @wraps(check)
        def asked(subject: Subject) -> Finding:
            return check(subject) if condition(subject) else Finding(None, otherwise)

        return asked

    return decorate


needs_eps = asked_if(lambda subject: subject.eps > 0, "eps is 0: nothing to compare")
needs_budgets = asked_if(lambda subject: len(subject.budgets) > 0, "no budget above 0: nothing to compare")
# A model that answers one class for all images, or guesses, has no gradient that leads anywhere, and no attack moves
# it: what is asked of those would take it for a defence that masks its gradients. One check alone names what it is.
needs_learnt = asked_if(lambda subject: subject.learnt, "it has learnt nothing: see beats_the_commonest_class")


def needs_correct(check: Check) -> Check:
    """The model has learnt something, and has an image right."""
    has_one = asked_if(lambda subject: bool(subject.correct.any()), "no image is classified correctly")
    return needs_learnt(has_one(check))


def breakable(check: Check) -> Check:
    """There is a budget above 0, and an image that it may break: where none is right, every attack leaves 0."""
    return needs_budgets(needs_correct(check))


def breakable_at_eps(check: Check) -> Check:
    """The same at eps itself."""
    return needs_eps(needs_correct(check))
