"""Trainings of a second on scikit-learn's digits, for the tests of what trains and of what is trained."""

from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stages.common import images, models, robustness, training
from stages.common.adversary import Adversary, Settings
from stages.common.images import ImageSet

RECIPE = training.Recipe(
    epochs=4,
    batch_size=64,
    learning_rate=0.4,
    filter_rate=0.1,
    momentum=0.85,
    weight_decay=1e-3,
    warmup=0.2,
    label_smoothing=0.1,
    flip=False,
    translate=1,
    early_size=None,
    bfloat16=False,
    compile=False,
    sync_batchnorm=False,
    seed=0,
)
SETTINGS = Settings(
    eps=0.1,
    goal=0.1,
    attack="n-fgsm",
    fraction=0.75,
    noise=2.0,
    steps=3,
    ramp=0.5,
    overfitting_gap=0.2,
    undo_overfitting=True,
    pgd_steps=3,
    validation_images=50,
    seed=0,
)
Opponent = Callable[[nn.Module, ImageSet], training.Regime]  # of a model, judging it on a validation set


def digits() -> ImageSet:
    """scikit-learn's digits: 1,797 grey images of 8x8 pixels in ten classes."""
    source = load_digits()
    pixels = torch.from_numpy((source.images * 255 / 16).round().astype("uint8")).unsqueeze(1)
    return ImageSet(pixels, torch.from_numpy(source.target).long(), list("0123456789"))


def parts(digits: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Training and validation images."""
    return digits.take(torch.arange(1200)), digits.take(torch.arange(1200, 1600))


def new_model(digits: ImageSet, seed: int = 0) -> models.Classifier:
    torch.manual_seed(seed)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[16, 16])
    model.adapt(images.to_float(parts(digits)[0].images))
    return model


def fit(
    digits: ImageSet,
    folder: Path,
    recipe: training.Recipe = RECIPE,
    opponent: Opponent | None = None,
    log: Callable[[list[dict[str, float]]], None] = lambda rows: None,
) -> tuple[models.Classifier, training.Result]:
    """A model trained by `recipe` against `opponent`, and what `training.train` says of it."""
    model, (train_set, val_set) = new_model(digits, recipe.seed), parts(digits)
    regime = None if opponent is None else opponent(model, val_set)
    return model, training.train(
        model, train_set, val_set, recipe, regime, resume_in=Path(folder), log=log, name="test"
    )


def all_right(digits: ImageSet) -> tuple[models.Classifier, Tensor, Tensor]:
    """An untrained model, images, and the classes that it says: every image counts as classified correctly."""
    torch.manual_seed(1)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8])
    model.adapt(images.to_float(digits.images))
    x = images.to_float(digits.take(torch.arange(40)).images)
    return model.eval(), x, model(x).argmax(1)


def against(settings: Settings = SETTINGS) -> Opponent:
    """Adversarial training as the pipeline does it."""
    return lambda model, val_set: Adversary(model, val_set, settings)


class Scripted(Adversary):
    """An adversary whose epochs know and withstand what `script` says, whatever the model does.

    `script` maps an epoch to its clean accuracy, and to those under FGSM and PGD at every budget.
    """

    def __init__(
        self, model: nn.Module, val_set: ImageSet, settings: Settings, script: dict[int, tuple[float, float, float]]
    ):
        super().__init__(model, val_set, settings)
        self.script = script

    def after_epoch(self, row: training.Row, progress: training.Progress) -> training.Verdict:
        clean, fgsm, pgd = self.script[int(row["epoch"])]

        def first(share: float, image_set: ImageSet) -> Tensor:
            return torch.arange(len(image_set)) < round(share * len(image_set))

        def predictions(model, image_set, epsilons):
            right = first(fgsm, image_set)
            return torch.where(right, image_set.labels, image_set.labels + 1).expand(len(epsilons), -1)

        def survivors(model, image_set, epsilons, *, steps, seed):
            return first(pgd, image_set).expand(len(epsilons), -1)

        def unbroken(model, image_set, eps, *, steps, seed, climbed):
            return image_set.labels  # the margin breaks no more

        with (
            mock.patch.object(robustness, "fgsm_predictions", predictions),
            mock.patch.object(robustness, "pgd_survivors", survivors),
            mock.patch.object(robustness, "pgd_predictions", unbroken),
        ):
            return super().after_epoch(row | {"val_accuracy": clean}, progress)


def scripted(script: dict[int, tuple[float, float, float]], settings: Settings = SETTINGS) -> Opponent:
    return lambda model, val_set: Scripted(model, val_set, settings, script)


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have the same weights and buffers, to the bit."""
    return all(torch.equal(one.state_dict()[key], value) for key, value in other.state_dict().items())
