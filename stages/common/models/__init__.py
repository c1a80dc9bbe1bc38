"""The models: architectures by name, checkpoints, and holding a model still while it is looked at."""

from stages.common.models.architectures import ARCHITECTURES, Classifier, build
from stages.common.models.checkpoint import checkpoint, load_checkpoint
from stages.common.models.hold import frozen

__all__ = ["ARCHITECTURES", "Classifier", "build", "checkpoint", "frozen", "load_checkpoint"]
