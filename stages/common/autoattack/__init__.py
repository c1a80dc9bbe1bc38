"""AutoAttack: four attacks without a knob, each on what the ones before it left (Croce and Hein 2020)."""

from stages.common.autoattack.apgd import FEWEST_CLASSES, apgd, apgd_targeted
from stages.common.autoattack.budgets import Budget, Left, run_each
from stages.common.autoattack.ensemble import PARTS, QUERIES, STEPS, parts, run
from stages.common.autoattack.fab import fab

__all__ = [
    "FEWEST_CLASSES",
    "PARTS",
    "QUERIES",
    "STEPS",
    "Budget",
    "Left",
    "apgd",
    "apgd_targeted",
    "fab",
    "parts",
    "run",
    "run_each",
]
