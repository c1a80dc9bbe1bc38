"""What is wrong with values that are sound by themselves and do not go together: refused before any file is read.

This says what may not be, and changes no value: as for schema.py, no stage is stale when it changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from stages.common import class_names, normalization, origin_names, workspace
from stages.common.errors import UserError
from stages.common.origin_names import CUSTOM
from stages.common.params.types import FROM_DATA, OWN, TORCHVISION, set_name

if TYPE_CHECKING:
    from stages.common.params.schema import Keys

# Of the data sets whose classes are known before any file is read: those that may be learnt, and those that may be OOD
CLASSES: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
    "cifar10": (class_names.CIFAR10, class_names.CIFAR100),
    "digits": (class_names.DIGITS, class_names.DIGITS),
}
TAKEN = ("train", "val", "test", "id", "ood", "extra")  # what the study's own sets are called, in tables and plots
# Sets that are no OOD set beside a data set: it has their images, or another size and colour
FOREIGN: Mapping[str, Sequence[str]] = {
    "digits": ("cifar100", "digits"),
    "folder": ("cifar100",),
    "torchvision": ("cifar100",),
}


def found_in(params: "Keys") -> list[str]:
    """One line for each fault: the key, its value and what is allowed."""
    return [*_extra_sets(params), *_classes(params), *_models(params)]


def refuse(found: Sequence[str], path: str | Path = "params.yaml") -> None:
    """Raise one UserError with a line for each fault, if there are any."""
    if found:
        raise UserError("\n       ".join(f"{path}: {fault}" for fault in found))


def found_in_data(params: "Keys", classes: Sequence[str], images: int) -> list[str]:
    """The same of what can be said only beside the data, before the hour of training: names that are none of `classes`,
    neighbours that `images` training images do not have.
    """
    found = []
    targets = {"targeted_sweep.target": params.targeted_sweep.target}
    targets[f"datasets.{params.dataset}.target"] = getattr(params.datasets, params.dataset).target
    for key, target in targets.items():
        if target is not None and target not in classes:
            found.append(f"{key} = {target!r}: allowed are the classes learnt, {', '.join(classes)}")
    for key in ("neighbours", "guides"):
        if (count := getattr(params.ood_eval, key)) > images:
            found.append(f"ood_eval.{key} = {count}: allowed is a whole number from 1 to {images}, the training images")
    return found


def _models(params: "Keys") -> Iterator[str]:
    """Somebody else's model: where it comes from, how its images are normalised, whose weights it takes."""
    ours = [name for name in params.models.model_fields_set if name != CUSTOM]
    custom = params.models.custom
    if custom.factory is not None and not _is_model(custom.factory):
        yield f"models.custom.factory = {custom.factory!r}: allowed are {origin_names.FORMS}"
    for text in {custom.factory, params.train_standard.model, params.train_robust.model} - {None}:
        if origin_names.is_outside(str(text)):
            yield f"{text!r} lies outside of the project: later stages load it through its checkpoint, by a path below"
    if custom.normalize != FROM_DATA:
        try:
            normalization.parse(custom.normalize)
        except ValueError as error:
            yield f"models.custom.normalize = {custom.normalize!r}: allowed are {FROM_DATA}, {error}"
    for key, section in (("train_standard", params.train_standard), ("train_robust", params.train_robust)):
        asked = section.model or params.model.name
        if asked not in (*ours, CUSTOM) and not _is_model(asked):
            yield f"{key}.model = {asked!r}: allowed are {', '.join([*ours, CUSTOM])}; {origin_names.FORMS}"
        if asked == CUSTOM and custom.factory is None:
            yield f"models.custom.factory is empty, and {key} asks for {CUSTOM}: allowed are {origin_names.FORMS}"
        if section.weights is None:
            continue
        if section.weights == OWN and asked in ours:
            yield f"{key}.weights = {OWN!r}: {asked} has no weights of its own; name a file"
        if section.weights != OWN and workspace.file(section.weights) is None:
            yield f"{key}.weights = {section.weights!r}: there is no such file; allowed are a file of weights, or {OWN}"
        if custom.normalize == FROM_DATA and asked not in ours:
            yield (
                f"models.custom.normalize = {FROM_DATA!r}: adopted weights need what they were trained with: "
                f"allowed are {normalization.ALLOWED}"
            )


def _is_model(text: str) -> bool:
    return origin_names.is_origin(text) or (PurePosixPath(text).suffix == ".pt" and workspace.file(text) is not None)


def _extra_sets(params: "Keys") -> Iterator[str]:
    for name in type(params.datasets).model_fields:
        sets = getattr(params.datasets, name).prepare.extra_sets
        key = f"datasets.{name}.prepare.extra_sets"
        names = [set_name(entry) for entry in sets]
        if len(set(names)) != len(names):
            yield f"{key} = {sets}: each set needs a name of its own"
        for taken in (entry for entry, found in zip(sets, names, strict=True) if found in TAKEN):
            yield f"{key} = {taken!r}: one of the study's own sets is called so; give the folder another name"
        for entry in sets:
            if entry in FOREIGN.get(name, ()):
                yield f"{key} = {entry!r}: not beside {name}; allowed is noise, torchvision:NAME, or a folder"
    own, key = params.datasets.torchvision, "datasets.torchvision"
    if own.ood_name == own.name:
        yield f"{key}.ood_name = {own.name!r}: it is the set to learn; allowed is another one"
    if TORCHVISION + own.name in own.prepare.extra_sets:
        yield f"{key}.prepare.extra_sets = {TORCHVISION + own.name!r}: it is the set to learn; allowed is another one"


def _classes(params: "Keys") -> Iterator[str]:
    for name, (may_be_learnt, may_be_ood) in CLASSES.items():
        section = getattr(params.datasets, name)
        unseen, key = section.prepare.ood_classes, f"datasets.{name}.prepare.ood_classes"
        learnt = [c for c in may_be_learnt if may_be_learnt is not may_be_ood or c not in unseen]
        for unknown in (c for c in unseen if c not in may_be_ood):
            yield f"{key} = {unknown!r}: allowed are {', '.join(may_be_ood)}"
        if len(learnt) < 2:
            yield f"{key} = {unseen}: two classes at least must be left to learn"
        targets = {f"datasets.{name}.target": section.target}
        if name == params.dataset and params.targeted_sweep.target is not None:
            targets["targeted_sweep.target"] = params.targeted_sweep.target
        for target, value in targets.items():
            if value not in learnt:
                yield f"{target} = {value!r}: allowed are {', '.join(learnt)}"
