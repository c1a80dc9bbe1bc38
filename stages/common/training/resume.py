"""What a training has reached, in a file that an interrupted run takes up when it is started again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stages.common import distributed, work
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.training.recipe import Recipe


@dataclass
class State:
    """What a run has come to, besides the weights and the momentum: the rows so far, and the epoch worth keeping."""

    rows: list[dict[str, float]]
    best: dict[str, Tensor] | None
    best_epoch: int


class WorkFile(work.WorkFile):
    """A training's."""

    def save(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State) -> None:
        momenta = [optimizer.state_dict() for optimizer in optimizers]
        content = {"ranks": distributed.count(), "model": model.state_dict(), "optimizers": momenta}
        self.write({**content, **vars(state)})

    def load(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State) -> bool:
        """Take up an interrupted run of this very kind, if there is one.

        Raises UserError if other than so many ranks were at it: each one's part of a batch has BatchNorm statistics of
        its own, so that the rest would be another training.
        """
        if (content := self.read()) is None:
            return False
        if (ranks := content["ranks"]) != distributed.count():
            raise UserError(
                f"this training was interrupted as {ranks} processes and cannot go on as {distributed.count()}; "
                f"set distributed.processes to {ranks}, or delete {self.path} to begin again"
            )
        model.load_state_dict(content["model"])
        for optimizer, momenta in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(momenta)
        for key in vars(state):
            setattr(state, key, content[key])
        return True


def fingerprint(model: nn.Module, train_set: ImageSet, val_set: ImageSet, recipe: Recipe, settings: object) -> str:
    """Of everything that a run's result depends on, see `work.fingerprint`: initial weights among it."""
    return work.fingerprint((recipe, settings), (train_set, val_set), model.state_dict().values())
