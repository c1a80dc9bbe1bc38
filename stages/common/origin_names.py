"""How the place that somebody else's model comes from is written, so that params.yaml can be checked first."""

from pathlib import PurePath

CUSTOM = "custom"  # what every model of somebody else is called: in `models` of params.yaml, and in checkpoints
KINDS = ("py", "timm", "torchvision", "ts")
FORMS = (
    "py:package.module:function, py:file.py:function, timm:NAME, torchvision:NAME, ts:FILE, "
    "or the path of a checkpoint of this project"
)


def is_origin(text: str) -> bool:
    """Whether `text` is written as one of KINDS, whatever it names."""
    kind, colon, name = text.partition(":")
    return kind in KINDS and bool(colon and name)


def is_outside(text: str) -> bool:
    """Whether `text` is a file of code that lies outside of the working folder: a checkpoint, which may come from
    anywhere, must not name one.
    """
    kind, _, name = text.partition(":")
    file = PurePath(name.rpartition(":")[0])
    return kind == "py" and file.suffix == ".py" and (file.is_absolute() or bool({"..", "~"} & {*file.parts}))
