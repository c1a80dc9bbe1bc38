"""The models: architectures by name, somebody else's behind the same face, checkpoints, and holding a model still."""

from stages.common.models.architectures import ARCHITECTURES, Classifier
from stages.common.models.checkpoint import build, checkpoint, is_checkpoint, load_checkpoint
from stages.common.models.hold import frozen

__all__ = ["ARCHITECTURES", "Classifier", "build", "checkpoint", "frozen", "is_checkpoint", "load_checkpoint"]
