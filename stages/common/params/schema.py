"""The keys of params.yaml and the type of each: declarations alone, no code that runs in a stage.

That is why no stage names this file among its dependencies: a new key changes no value that was there before, so it
makes nothing stale but the stages that read it (scripts/deps.py leaves the file out, tests/test_pipeline.py holds that
it stays free of code).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from stages.common.params.types import (
    Count,
    Eps,
    Epsilons,
    EpsL2,
    ImageSize,
    Name,
    Names,
    NotNegative,
    OpenShare,
    Positive,
    Radii,
    Share,
    ShareAboveZero,
    ShareBelowOne,
    each_once,
    integer,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Distributed(Section):
    processes: Count | Literal["auto"]
    sync_batchnorm: StrictBool


class Model(Section):
    name: Literal["whitened_cnn", "simple_cnn", "resnet18", "custom"]


class Architecture(Section):
    """What every architecture has; the other keys are the options that build it."""

    learning_rate: Positive
    filter_rate: Positive | None


class WhitenedCNN(Architecture):
    widths: Annotated[list[Count], Field(min_length=1, max_length=4)]
    activation: Literal["silu", "relu"]


class SimpleCNN(Architecture):
    pass


class ResNet18(Architecture):
    # Of fewer channels, oneDNN's gradient of strided 1x1 convolutions is wrong on AVX2, crashes or hangs (its #6035)
    width: Annotated[int, integer(8)]


class Custom(Architecture):
    factory: Name | None
    normalize: Name


class Models(Section):
    whitened_cnn: WhitenedCNN
    simple_cnn: SimpleCNN
    resnet18: ResNet18
    custom: Custom


class Training(Section):
    momentum: ShareBelowOne
    weight_decay: NotNegative
    warmup: OpenShare
    compile: StrictBool


class Trained(Section):
    """What both training stages have: another model than model.name, weights that are adopted instead of trained."""

    model: Name | None
    weights: Name | None
    label_smoothing: ShareBelowOne


class TrainStandard(Trained):
    pass


class TrainRobust(Trained):
    attack: Literal["n-fgsm", "rs-fgsm", "fgsm", "pgd", "trades"]
    adversarial_fraction: ShareAboveZero
    noise: NotNegative
    steps: Count
    ramp: Share
    overfitting_gap: OpenShare
    undo_overfitting: StrictBool
    pgd_steps: Count
    validation_images: Count


class FGSMSweep(Section):
    epsilons: Epsilons
    pgd_images: Count
    pgd_steps: Count
    picture_epsilons: Epsilons


class TargetedSweep(Section):
    target: Name | None
    epsilons: Epsilons


class OODEval(Section):
    temperature: Positive
    neighbours: Count
    gen_gamma: OpenShare
    gen_classes: Count
    vim_share: OpenShare
    guides: Count
    odin_temperature: Positive
    odin_eps: Eps
    accept: ShareAboveZero


# Those that have a gradient to follow: of detection.detectors.DETECTORS all but ODIN, which makes a step of its own
Detector = Literal[
    "max_logit",
    "max_softmax",
    "energy",
    "entropy",
    "generalized_entropy",
    "margin",
    "knn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
    "fdbd",
    "nnguide",
    "deep_entropy",
    "deep_knn",
    "deep_knn_entropy",
]


class OODAttack(Section):
    detectors: Annotated[list[Detector], Field(min_length=1)]
    epsilons: Epsilons
    images: Count
    pgd_steps: Count


class Breakdown(Section):
    images: Count
    pgd_steps: Count


class AutoAttack(Section):
    images: Count
    queries: Count


Corruption = Literal["gaussian_noise", "shot_noise", "defocus_blur", "contrast", "pixelate", "jpeg"]


class CorruptionSweep(Section):
    kinds: Annotated[list[Corruption], Field(min_length=1), AfterValidator(each_once("kind"))]
    images: Count


class Certify(Section):
    images: Annotated[int, integer(0)]
    sigma: Positive
    samples: Count
    selection_samples: Count
    alpha: OpenShare
    radii: Radii


class Audit(Section):
    images: Count
    pgd_steps: Count
    restarts: Count
    square_images: Count
    square_queries: Count
    strict: StrictBool


class DataTraining(Section):
    batch_size: Annotated[int, integer(2)]
    flip: StrictBool
    translate: Annotated[int, integer(0, 7)]
    early_size: ImageSize | None


class DataTrainStandard(Section):
    epochs: Count


class DataTrainRobust(Section):
    epochs: Count
    largest_budget: ShareAboveZero


class Prepare(Section):
    validation_fraction: OpenShare
    copies: Share
    extra_sets: list[Name]


class PrepareCIFAR10(Prepare):
    ood_classes: Names
    ood_split: Literal["train", "test", "both"]


class PrepareDigits(Prepare):
    test_fraction: OpenShare
    ood_classes: Names


class PrepareFolder(Prepare):
    root: Name
    ood_root: Name
    image_size: ImageSize
    test_fraction: OpenShare
    ood_classes: Names | None


class PrepareTorchvision(Prepare):
    image_size: ImageSize | None
    test_fraction: OpenShare
    ood_classes: Names | None


class Data(Section):
    """What every data set has; `prepare` has keys of each one's own."""

    target: Name | None
    eps: Eps
    prepare: Prepare
    training: DataTraining
    train_standard: DataTrainStandard
    train_robust: DataTrainRobust


class CIFAR10(Data):
    target: Name
    prepare: PrepareCIFAR10


class Digits(Data):
    target: Name
    prepare: PrepareDigits


class Folder(Data):
    prepare: PrepareFolder


class Torchvision(Data):
    name: Name
    ood_name: Name
    prepare: PrepareTorchvision


class Datasets(Section):
    cifar10: CIFAR10
    digits: Digits
    folder: Folder
    torchvision: Torchvision


class Keys(Section):
    """All of params.yaml. Attribute names are the file's keys, but for `eps`, which may be empty: Params has it."""

    dataset: Literal["cifar10", "digits", "folder", "torchvision"]
    seed: Annotated[int, integer(0, 2**32 - 1)]
    device: Literal["auto", "cpu", "cuda", "mps"]
    precision: Literal["auto", "float32", "bfloat16"]
    confidence: OpenShare
    eps_or_none: Annotated[Eps | None, Field(alias="eps")]
    eps_l2: EpsL2
    distributed: Distributed
    model: Model
    models: Models
    training: Training
    train_standard: TrainStandard
    train_robust: TrainRobust
    fgsm_sweep: FGSMSweep
    targeted_sweep: TargetedSweep
    ood_eval: OODEval
    ood_attack: OODAttack
    breakdown: Breakdown
    autoattack: AutoAttack
    corruption_sweep: CorruptionSweep
    certify: Certify
    audit: Audit
    datasets: Datasets
