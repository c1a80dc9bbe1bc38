"""Training: one loop, its optimizer, the recipe from params.yaml, and taking up what was interrupted."""

from stages.common.training.loop import Plain, Progress, Regime, Result, Row, Verdict, train
from stages.common.training.recipe import Recipe, new_model

__all__ = ["Plain", "Progress", "Recipe", "Regime", "Result", "Row", "Verdict", "new_model", "train"]
