"""What a training is told, and the model that it starts from."""

from dataclasses import dataclass

import torch

from stages.common import device, images, models
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params

ADAPTED = 5000  # training images that the normalisation and the whitening are fitted to


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training needs. Rates are for the mean loss of a batch; `early_size` is in pixels or None."""

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    flip: bool
    translate: int
    early_size: int | None
    bfloat16: bool
    compile: bool
    seed: int

    @classmethod
    def from_params(cls, params: Params, where: torch.device, *, epochs: int, label_smoothing: float) -> "Recipe":
        """The recipe that params.yaml asks for; the learning rate scales with the batch size (Goyal 2017)."""
        data, training = params.data.training, params.training
        return cls(
            epochs=epochs,
            batch_size=data.batch_size,
            learning_rate=params.architecture.learning_rate * data.batch_size / 1024,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            warmup=training.warmup,
            label_smoothing=label_smoothing,
            flip=data.flip,
            translate=data.translate,
            early_size=data.early_size,
            bfloat16=device.bfloat16(training.precision, where),
            compile=training.compile,
            seed=params.seed,
        )


def new_model(params: Params, train_set: ImageSet) -> Classifier:
    """An untrained model of the chosen architecture on the CPU, adapted to a fair sample of the training images."""
    options = params.architecture.model_dump(exclude={"learning_rate"})
    torch.manual_seed(params.seed)
    model = models.build(params.model.name, channels=train_set.images.shape[1], classes=train_set.classes, **options)
    model.adapt(images.to_float(train_set.images[images.sample(train_set.labels, ADAPTED)]))
    return model
