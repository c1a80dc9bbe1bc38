"""A typed, validated view of params.yaml: every stage loads it whole, so a bad value stops the run before any work.

`Params` mirrors the file. Two properties follow the switches in it: `params.data` is `datasets.<dataset>` and
`params.architecture` is `models.<model.name>`.
"""

import math
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, ValidationError

from stages.common import labels
from stages.common.errors import UserError


def _number_in(low: float, high: float = math.inf, *, open_low: bool = False, open_high: bool = False) -> Any:
    """A float between two bounds. 8/255 and 1e-05, which YAML 1.1 hands over as strings, are numbers too."""
    bounds = f"{'above' if open_low else 'from'} {low:g}"
    if high < math.inf:
        bounds += f" {'to below' if open_high else 'to'} {high:g}"
    allowed = f"a number {bounds}, such as 0.05 or 8/255"

    def check(value: Any) -> float:
        try:
            number = float(Fraction(value.replace(" ", ""))) if isinstance(value, str) else value
        except (ValueError, ZeroDivisionError):
            raise ValueError(allowed) from None
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            raise ValueError(allowed)
        if number < low or number > high or (open_low and number == low) or (open_high and number == high):
            raise ValueError(allowed)
        return float(number)

    return Annotated[float, BeforeValidator(check)]


def _integer_in(low: int, high: int | None = None) -> Any:
    allowed = f"a whole number from {low}" + ("" if high is None else f" to {high}")

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError(allowed)
        return value

    return Annotated[int, BeforeValidator(check)]


def _name(value: Any) -> Any:
    return str(value) if type(value) is int else value  # to YAML the class "8" is a number


def _ascending(value: list[float]) -> list[float]:
    if len(set(value)) != len(value):
        raise ValueError("each eps may stand in the list once")
    return sorted(value)


Eps = _number_in(0, 1)
Epsilons = Annotated[list[Eps], Field(min_length=1), AfterValidator(_ascending)]
Positive = _number_in(0, open_low=True)
Share = _number_in(0, 1)
OpenShare = _number_in(0, 1, open_low=True, open_high=True)
Count = _integer_in(1)
ImageSize = _integer_in(8, 64)
ClassName = Annotated[str, BeforeValidator(_name), Field(min_length=1)]
ClassNames = Annotated[list[ClassName], Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(_Section):
    name: Literal["whitened_cnn", "simple_cnn", "resnet18"]


class WhitenedCNN(_Section):
    widths: Annotated[list[Count], Field(min_length=1, max_length=4)]
    learning_rate: Positive


class SimpleCNN(_Section):
    learning_rate: Positive


class ResNet18(_Section):
    width: Count
    learning_rate: Positive


class Models(_Section):
    whitened_cnn: WhitenedCNN
    simple_cnn: SimpleCNN
    resnet18: ResNet18


class Training(_Section):
    momentum: _number_in(0, 1, open_high=True)
    weight_decay: _number_in(0)
    warmup: OpenShare
    precision: Literal["auto", "float32", "bfloat16"]
    compile: StrictBool
    label_smoothing: _number_in(0, 1, open_high=True)


class TrainRobust(_Section):
    attack: Literal["n-fgsm", "rs-fgsm", "fgsm"]
    adversarial_fraction: _number_in(0, 1, open_low=True)
    noise: _number_in(0)
    ramp: Share
    label_smoothing: _number_in(0, 1, open_high=True)
    overfitting_gap: OpenShare
    undo_overfitting: StrictBool
    pgd_steps: Count
    validation_images: Count


class FGSMSweep(_Section):
    epsilons: Epsilons
    pgd_images: Count
    pgd_steps: Count
    picture_epsilons: Epsilons


class TargetedSweep(_Section):
    target: ClassName | None
    epsilons: Epsilons


class OODEval(_Section):
    temperature: Positive
    neighbours: Count
    gen_gamma: OpenShare
    gen_classes: Count
    vim_share: OpenShare
    guides: Count
    odin_temperature: Positive
    odin_eps: Eps
    accept: _number_in(0, 1, open_low=True)
    confidence: OpenShare


class OODAttack(_Section):
    detectors: ClassNames
    epsilons: Epsilons
    images: Count
    pgd_steps: Count


class Audit(_Section):
    images: Count
    pgd_steps: Count
    restarts: Count
    square_images: Count
    square_queries: Count
    strict: StrictBool


class DataTraining(_Section):
    batch_size: _integer_in(2)
    epochs_standard: Count
    epochs_robust: Count
    largest_budget: _number_in(0, 1, open_low=True)
    flip: StrictBool
    translate: _integer_in(0, 7)
    early_size: ImageSize | None


class PrepareCIFAR10(_Section):
    validation_fraction: OpenShare
    ood_classes: ClassNames
    ood_split: Literal["train", "test", "both"]
    extra_sets: list[ClassName]


class PrepareDigits(_Section):
    validation_fraction: OpenShare
    test_fraction: OpenShare
    ood_classes: ClassNames
    extra_sets: list[ClassName]


class PrepareFolder(_Section):
    root: ClassName
    ood_root: ClassName
    image_size: ImageSize
    validation_fraction: OpenShare
    test_fraction: OpenShare
    ood_classes: ClassNames | None
    extra_sets: list[ClassName]


class CIFAR10(_Section):
    target: ClassName
    prepare: PrepareCIFAR10
    training: DataTraining


class Digits(_Section):
    target: ClassName
    prepare: PrepareDigits
    training: DataTraining


class Folder(_Section):
    target: ClassName | None
    prepare: PrepareFolder
    training: DataTraining


class Datasets(_Section):
    cifar10: CIFAR10
    digits: Digits
    folder: Folder


class Params(_Section):
    """All of params.yaml. Attribute names are the file's keys."""

    dataset: Literal["cifar10", "digits", "folder"]
    seed: _integer_in(0, 2**32 - 1)
    device: Literal["auto", "cpu", "cuda", "mps"]
    eps: Eps
    model: Model
    models: Models
    training: Training
    train_robust: TrainRobust
    fgsm_sweep: FGSMSweep
    targeted_sweep: TargetedSweep
    ood_eval: OODEval
    ood_attack: OODAttack
    audit: Audit
    datasets: Datasets

    @property
    def data(self) -> CIFAR10 | Digits | Folder:
        """The section of the chosen data set."""
        return getattr(self.datasets, self.dataset)

    @property
    def architecture(self) -> WhitenedCNN | SimpleCNN | ResNet18:
        """The section of the chosen model."""
        return getattr(self.models, self.model.name)


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check the whole of `path`.

    Raises UserError with one line per fault: the key, the value that it has and what is allowed.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the top folder of the project") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no keys")
    try:
        params = Params.model_validate(content)
    except ValidationError as error:
        raise UserError("\n       ".join(f"{path}: {_explain(fault)}" for fault in error.errors())) from None
    faults = _unknown_classes(params)
    if faults:
        raise UserError("\n       ".join(f"{path}: {fault}" for fault in faults))
    return params


def _explain(fault: Any) -> str:
    key = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("function-"))
    if fault["type"] == "missing":
        return f"{key} is missing"
    if fault["type"] == "extra_forbidden":
        return f"{key} = {fault['input']!r}: unknown key; look for a misspelling"
    plain = {
        "too_short": "a list of at least one value",
        "list_type": "a list",
        "bool_type": "true or false",
        "model_type": "a section with keys of its own",
    }
    allowed = plain.get(fault["type"], fault["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {fault['input']!r}: allowed is {allowed}"


def _unknown_classes(params: Params) -> list[str]:
    """Faults in class names, for the data sets whose names are known before any file is read."""
    id_classes = {"cifar10": labels.CIFAR10, "digits": labels.DIGITS}
    ood_classes = {"cifar10": labels.CIFAR100, "digits": labels.DIGITS}
    faults = []
    for name in ("cifar10", "digits", "folder"):
        sets = getattr(params.datasets, name).prepare.extra_sets
        key = f"datasets.{name}.prepare.extra_sets"
        names = [PurePosixPath(entry).name for entry in sets]
        if len(set(names)) != len(names):
            faults.append(f"{key} = {sets}: each set needs a name of its own")
        foreign = {"cifar10": (), "digits": ("cifar100", "digits"), "folder": ("cifar100",)}[name]
        faults += [f"{key} = {c!r}: not beside {name}; allowed is noise, or a folder" for c in sets if c in foreign]
    for name, known in ood_classes.items():
        section = getattr(params.datasets, name)
        unseen, key = section.prepare.ood_classes, f"datasets.{name}.prepare.ood_classes"
        learnt = [c for c in id_classes[name] if name != "digits" or c not in unseen]
        faults += [f"{key} = {c!r}: allowed are {', '.join(known)}" for c in unseen if c not in known]
        if len(set(unseen)) != len(unseen):
            faults.append(f"{key} = {unseen}: a class may stand in the list once")
        if len(learnt) < 2:
            faults.append(f"{key} = {unseen}: two classes at least must be left to learn")
        targets = {f"datasets.{name}.target": section.target}
        if name == params.dataset and params.targeted_sweep.target is not None:
            targets["targeted_sweep.target"] = params.targeted_sweep.target
        allowed = ", ".join(learnt)
        faults += [f"{key} = {c!r}: allowed are {allowed}" for key, c in targets.items() if c not in learnt]
    return faults
