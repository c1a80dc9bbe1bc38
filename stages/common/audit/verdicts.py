"""The audit of one model: the verdict of every check, how it is said, and what its figures come to."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

from torch import Tensor

from stages.common import accuracy, attacks, errors
from stages.common.audit import probes
from stages.common.audit.checks import CHECKS
from stages.common.audit.finding import VERDICTS
from stages.common.audit.subject import Subject

STYLES = {"pass": "green", "warn": "yellow", "FAIL": "bold red", "n/a": "dim"}
WIDTH, VERDICT_WIDTH = max(map(len, CHECKS)), max(map(len, STYLES))

Row = dict[str, str]  # check, verdict, seen and meaning


def judge(subject: Subject) -> Iterator[Row]:
    """Make every check in turn. A row's `meaning` is empty unless the verdict is warn or FAIL."""
    for check, ask in CHECKS.items():
        finding = ask(subject)
        meaning = finding.otherwise if finding.verdict in ("warn", "FAIL") else ""
        yield {"check": check, "verdict": finding.verdict, "seen": finding.seen, "meaning": meaning}


def printed(rows: Iterable[Row]) -> list[Row]:
    """The rows, each printed as soon as its check is made."""
    found = []
    for row in rows:
        print(line(row, sys.stdout), flush=True)
        found.append(row)
    return found


def line(row: Row, stream: TextIO) -> str:
    """One row for a person, the verdict in colour where `stream` shows them."""
    verdict = errors.paint(f"{row['verdict']:<{VERDICT_WIDTH}}", STYLES[row["verdict"]], stream)
    return f"  {verdict}  {row['check']:<{WIDTH}}  {row['seen']}{row['meaning'] and ': '}{row['meaning']}"


def figures_of(subject: Subject, rows: Sequence[Row]) -> dict[str, Any]:
    """What metrics/audit.json says of a model; a check that had nothing to look at is not in it."""
    found = {row["check"]: row["verdict"] for row in rows}
    strongest = {"eps": subject.strongest, "at_8_255": subject.strongest_at(attacks.EIGHT)}
    both = {
        at: {"strongest": survivors, "worst_of_norms": subject.worst_of_norms(survivors)}
        for at, survivors in strongest.items()
    }
    return {
        **{check: int(verdict == "pass") for check, verdict in found.items() if verdict in VERDICTS},
        **{kind: sum(each == verdict for each in found.values()) for verdict, kind in VERDICTS.items()},
        **accuracy.figures({"pgd_l2": subject.pgd_l2, **both["eps"]}, subject.confidence),
        "at_8_255": accuracy.figures(both["at_8_255"], subject.confidence),
        "median_eps": {attack: _median(eps) for attack, eps in subject.smallest_eps.items()},
    }


def _median(eps: Tensor) -> float:
    return float(eps.clamp(max=probes.LARGEST).double().median())
