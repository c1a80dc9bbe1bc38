"""Could a classifier's answers be guesses, or one answer for all images? Exact tests, or by 2,000 random deals.

`labels` and `answers` are int64 (N,), the true classes of images and what a model takes them for; `right` is bool (N,).
"""

import math

import torch
from scipy.stats import binom
from torch import Tensor

LEVEL = 0.05  # how likely luck may be
DEALS = 2000  # of the same answers to other images
SEED = 0  # equal answers, equal verdicts


def can_be_told(labels: Tensor) -> bool:
    """Whether the right answers, dealt out to the images at random, would all be right less often than half of LEVEL.

    Not so of a few images, nor of images of one class: there the best of models might be lucky.
    """
    alike = math.prod(math.factorial(size) for size in labels.bincount().tolist())
    return math.factorial(len(labels)) // alike > 2 / LEVEL


def informed(labels: Tensor, answers: Tensor) -> bool:
    """Whether the answers have to do with the images: the same answers dealt out to them at random have as high a
    balanced accuracy less often than LEVEL (a permutation test: Ojala and Garriga 2010).

    Random deals come to 1 / K of K classes whatever is answered, and one answer for all images to just that.
    """
    weights = (1.0 / labels.bincount().double())[labels]  # summed over the right answers: K times balanced accuracy

    def balanced(dealt: Tensor) -> float:
        return float(weights[dealt == labels].sum())

    generator, found = torch.Generator().manual_seed(SEED), balanced(answers) - 1e-9  # sums round in any order
    deals = (answers[torch.randperm(len(labels), generator=generator)] for _ in range(DEALS))
    as_high = sum(balanced(dealt) >= found for dealt in deals)
    return (1 + as_high) / (1 + DEALS) < LEVEL


def beats_one_answer(labels: Tensor, right: Tensor) -> bool:
    """Whether the model is right more often than the commonest class for all images is: of the images that only one of
    the two has right, more are the model's than luck would give (McNemar 1947, exact).
    """
    common = labels == labels.bincount().argmax()
    gained, lost = int((right & ~common).sum()), int((~right & common).sum())
    return float(binom.sf(gained - 1, gained + lost, 0.5)) < LEVEL
