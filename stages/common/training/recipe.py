"""What a training is told, and the model that it starts from."""

from dataclasses import dataclass
from pathlib import Path

import torch

from stages.common import device, distributed, evaluation, images, models, normalization, workspace
from stages.common.errors import UserError
from stages.common.images import ImageSet
from stages.common.models import Classifier
from stages.common.params import Params
from stages.common.params.types import FROM_DATA, OWN

ADAPTED = 5000  # training images that the normalisation and the whitening are fitted to...
WINDOW = 32  # ...and the pixels a side that are looked at of each, whatever their size


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every training needs. Rates are for the mean loss of a batch; `filter_rate` is Muon's, None for SGD on the
    filters too; `early_size` is in pixels or None.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    filter_rate: float | None
    momentum: float
    weight_decay: float
    warmup: float
    label_smoothing: float
    flip: bool
    translate: int
    early_size: int | None
    bfloat16: bool
    compile: bool
    sync_batchnorm: bool
    seed: int

    @classmethod
    def from_params(cls, params: Params, which: str, where: torch.device) -> "Recipe":
        """The recipe that params.yaml asks for of the `standard` or the `robust` training. SGD's rate scales with the
        batch size (Goyal 2017), Muon's, whose steps are as long however loud the gradient, with its root.

        Raises UserError for a batch that cannot be dealt out to the ranks evenly, and for sync_batchnorm without GPUs.
        """
        data, training, section = params.data.training, params.training, params.model_of(which).section
        if data.batch_size % (ranks := distributed.count()):
            raise UserError(
                f"params.yaml: datasets.{params.dataset}.training.batch_size = {data.batch_size}: it is dealt out to "
                f"{ranks} processes; allowed is a multiple of {ranks}"
            )
        if params.distributed.sync_batchnorm and where.type != "cuda":
            raise UserError("params.yaml: distributed.sync_batchnorm = true: it works between GPUs alone; set false")
        share = data.batch_size / 1024
        return cls(
            epochs=getattr(params.data, f"train_{which}").epochs,
            batch_size=data.batch_size,
            learning_rate=section.learning_rate * share,
            filter_rate=None if section.filter_rate is None else section.filter_rate * share**0.5,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            warmup=training.warmup,
            label_smoothing=params.trained(which).label_smoothing,
            flip=data.flip,
            translate=data.translate,
            early_size=data.early_size,
            bfloat16=device.bfloat16(params.precision, where),
            compile=training.compile,
            sync_batchnorm=params.distributed.sync_batchnorm,
            seed=params.seed,
        )


def new_model(params: Params, which: str, train_set: ImageSet) -> Classifier:
    """The model on the CPU that train_<which> begins with, adapted to a fair sample of the training images: untrained,
    unless train_<which>.weights names weights to adopt. Raises UserError for a model or weights that do not fit.
    """
    chosen, adopted = params.model_of(which), params.trained(which).weights
    weights_file = workspace.file(adopted) if adopted not in (None, OWN) else None
    channels, size = train_set.images.shape[1], train_set.images.shape[-1]
    if chosen.factory is None:
        options = chosen.section.model_dump(exclude={"learning_rate", "filter_rate"})
    else:
        normalize = params.models.custom.normalize
        moments = None if normalize == FROM_DATA else normalization.parse(normalize)
        options = {"origin": chosen.factory, "size": size, "moments": moments, "pretrained": adopted == OWN}
    torch.manual_seed(params.seed)
    if weights_file is not None and models.is_checkpoint(weights_file):
        return _checked(models.load_checkpoint(weights_file), weights_file, train_set)
    model = models.build(
        chosen.name, channels=channels, classes=train_set.classes, weights_file=weights_file, **options
    )
    if adopted is None:
        some = images.sample(train_set.labels, ADAPTED)
        looked_at = images.to_float(images.windows(train_set.images, some, WINDOW))
        model.adapt(looked_at, params.trained_budget(which))
    return model


def _checked(model: Classifier, path: Path, train_set: ImageSet) -> Classifier:
    """A model that comes with its classes: refused where they are not those of the images."""
    if not evaluation.fits(model, train_set):
        raise UserError(
            f"{path} knows {len(model.classes)} classes ({', '.join(model.classes[:5])} ...), images of "
            f"{len(model.normalize.mean)} channels: not those of data/prepared ({', '.join(train_set.classes[:5])} ...)"
        )
    return model
