"""Training: one loop, its optimizer, the recipe from params.yaml, and taking up what was interrupted."""

from stages.common.training.learning import LEVEL, Learnt, learn
from stages.common.training.loop import Learner, Objective, Plain, Progress, Regime, Result, Row, Verdict, train
from stages.common.training.recipe import Recipe, new_model

__all__ = [
    "LEVEL",
    "Learner",
    "Learnt",
    "Objective",
    "Plain",
    "Progress",
    "Recipe",
    "Regime",
    "Result",
    "Row",
    "Verdict",
    "learn",
    "new_model",
    "train",
]
