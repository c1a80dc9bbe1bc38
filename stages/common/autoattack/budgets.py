"""AutoAttack at several budgets: what an image withstands at one it is spared at the smaller ones by the same norm.

What is known after each part is kept in a file, from which a run that was cut off goes on.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.common import attacks, evaluation, work
from stages.common.autoattack import ensemble
from stages.common.images import ImageSet
from stages.common.work import WorkFile


class Budget(NamedTuple):
    """A norm, and how much by it."""

    norm: type[attacks.Ball]
    eps: float


class Left(NamedTuple):
    """Which images are right clean and after each part at a budget, bool (N,) [part]. `file` holds what the parts left,
    and is of use until all that comes of it is written.
    """

    budget: Budget
    by_part: dict[str, Tensor]
    file: WorkFile

    @property
    def shares(self) -> dict[str, float]:
        """The accuracy clean and after each part."""
        return {part: float(alive.double().mean()) for part, alive in self.by_part.items()}

    @property
    def last(self) -> Tensor:
        """Which images are right after all parts: bool (N,)."""
        return list(self.by_part.values())[-1]


def run_each(
    model: nn.Module,
    image_set: ImageSet,
    budgets: Iterable[Budget],
    *,
    queries: int,
    seed: int,
    resume_in: Path,
    name: str,
) -> Iterator[Left]:
    """Yield what `ensemble.run` leaves at each of the budgets, the largest first. Files lie in the folder `resume_in`,
    by the model's `name`.

    What survives all parts at a budget is spared at the smaller ones by the same norm, which its own holds. So what is
    broken at a budget is broken at every larger one, as in the sweep's worst case, and what takes most of the time, an
    image that withstands everything, is attacked once.
    """
    clean = evaluation.predictions(model, image_set.images) == image_set.labels
    spared: dict[type[attacks.Ball], Tensor] = {}
    for budget in sorted(dict.fromkeys(budgets), key=lambda budget: -budget.eps):
        norm, eps = budget
        safe = spared.get(norm, torch.zeros_like(clean))
        told = (eps, norm.__name__, queries, seed, safe.tolist())
        run = work.fingerprint(told, [image_set], model.state_dict().values())
        file = WorkFile(resume_in, f"autoattack-{name}-{norm.__name__}-{eps:.4g}", run)
        others = (~safe).nonzero().squeeze(1)
        attacked = image_set.take(others)
        done: dict[str, Tensor] = (file.read() or {}).get("done", {})
        for part, alive in ensemble.run(model, attacked, eps, norm=norm, queries=queries, seed=seed, done=done):
            done[part] = alive
            file.write({"done": done})
        left = {"clean": clean}
        for part, alive in done.items():
            left[part] = safe.clone()
            left[part][others] = alive
        spared[norm] = left[part]
        yield Left(budget, left, file)
