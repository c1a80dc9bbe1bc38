"""What a training has reached, in a file that an interrupted run takes up when it is started again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.common import artifacts, fingerprints
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.training.recipe import Recipe

ABANDONED = 8  # work files of other runs that are kept: some of these may be at work now


@dataclass
class State:
    """What a run has come to, besides the weights and the momentum: the rows so far, and the epoch worth keeping."""

    rows: list[dict[str, float]]
    best: dict[str, Tensor] | None
    best_epoch: int


class WorkFile:
    """The file of one run, named after all that its result depends on: other runs, at work now perhaps, have others."""

    def __init__(self, folder: Path, name: str, run: str):
        self.path, self.run = folder / f"{name}-{run[:16]}.pt", run
        _tidy(folder, name)

    def save(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State) -> None:
        momenta = [optimizer.state_dict() for optimizer in optimizers]
        content = {"run": self.run, "model": model.state_dict(), "optimizers": momenta, **vars(state)}
        artifacts.write_checkpoint(self.path, content)

    def load(self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: State) -> bool:
        """Take up an interrupted run of this very kind; the file of any other run, or a damaged one, is left aside."""
        if not self.path.is_file():
            return False
        try:
            content = artifacts.read_checkpoint(self.path)
        except UserError:
            return False
        if content.get("run") != self.run:
            return False
        model.load_state_dict(content["model"])
        for optimizer, momenta in zip(optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(momenta)
        for key in vars(state):
            setattr(state, key, content[key])
        return True

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)


def fingerprint(model: nn.Module, train_set: ImageSet, val_set: ImageSet, recipe: Recipe, settings: object) -> str:
    """Of everything that a run's result depends on, see `fingerprints.of`: initial weights among it."""
    return fingerprints.of((recipe, settings), (train_set, val_set), model.state_dict().values())


def _tidy(folder: Path, name: str) -> None:
    """Delete the work files of runs given up long ago, all but the newest ABANDONED of this name, and half-written ones
    that killed runs have left.
    """
    artifacts.sweep(folder, f"{name}-*.pt")
    files = sorted(folder.glob(f"{name}-*.pt"), key=lambda file: file.stat().st_mtime)
    for file in files[:-ABANDONED]:
        file.unlink(missing_ok=True)
