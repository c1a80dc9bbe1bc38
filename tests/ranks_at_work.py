"""What tests/test_distributed.py has ranks do: python -m torch.distributed.run ... -m tests.ranks_at_work TASK FILE

Each task ends with the first rank's findings in FILE.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from stages.common import (
    arrays,
    artifacts,
    autoattack,
    corruptions,
    distributed,
    evaluation,
    images,
    models,
    params,
    robustness,
    training,
)
from stages.common.adversary import Adversary
from stages.common.audit.subject import Subject
from stages.common.detection import detectors, evasion, scores
from stages.common.detection.scores import Options
from stages.common.images import ImageSet
from tests.small import RECIPE, SETTINGS, digits, new_model, parts

CPU = torch.device("cpu")


def judge() -> dict[str, object]:
    """Every kind of figure that is dealt out by batches, of 97 images in batches of 16."""
    sys.modules["stages.common.images.batches"].BATCH_SIZE = 16
    every = digits()
    some, outside = every.take(torch.arange(97)), every.take(torch.arange(200, 261))
    torch.manual_seed(1)
    model, other = (models.build("whitened_cnn", channels=1, classes=every.classes, widths=[8]) for _ in range(2))
    for each in (model, other):
        each.adapt(images.to_float(every.images))
        each.eval()
    labels = evaluation.predictions(model, some.images)
    some = ImageSet(some.images, labels, some.classes)  # all of them right, so that all are attacked
    knobs = params.load(overrides={"audit.pgd_steps": 3, "audit.restarts": 2, "audit.square_images": 50})
    subject = Subject.from_params(knobs, model=model, other=other, defended=True, image_set=some)
    subject = replace(subject, square_queries=20, eps=0.02, epsilons=(0.01, 0.02))
    options, sight = Options.from_params(knobs), detectors.Sight.from_params(knobs)
    names = ("max_logit", "knn", "odin")
    fitted = detectors.fit_on(model, every.take(torch.arange(300, 600)), sight, options, names=names)
    seen = detectors.see(model, outside, sight, names=detectors.views_of(names))
    evaded = evasion.attack(model, fitted, some, evasion.DOWN, [0.0, 0.1], sight=sight, steps=2, seed=0)
    effort = {"steps": 3, "queries": 10, "seed": 0}
    return {
        "fgsm": robustness.fgsm_predictions(model, some, [0.0, 0.1]),
        "pgd": robustness.pgd_survivors(model, some, [0.0, 0.01, 0.02], steps=3, seed=0),
        "strongest": subject.strongest,
        "square": subject.square,
        "smallest": subject.smallest_eps,
        "transfer": subject.transfer,
        "autoattack": dict(autoattack.run(model, some, 0.01, **effort)),
        "corrupted": corruptions.correct(model, some, ["gaussian_noise", "contrast"], seed=0),
        "scores": detectors.score(fitted, seen),
        "evaded": {name: {k: torch.from_numpy(v) for k, v in by.items()} for name, by in evaded.items()},
    }


def fit(folder: Path) -> dict[str, object]:
    """Every detector fitted on disk, and which files of `folder` the ranks have mapped."""
    arrays.DATA = folder / "data"
    arrays.DATA.mkdir(exist_ok=True)
    sys.modules["stages.common.images.batches"].BATCH_SIZE = 16
    detectors.LARGE, scores.PART = 0, 2500
    every = digits()
    torch.manual_seed(1)
    model = models.build("whitened_cnn", channels=1, classes=every.classes, widths=[8])
    model.adapt(images.to_float(every.images))
    knobs = params.load(overrides={"ood_eval.neighbours": 5, "ood_eval.guides": 5})
    options, sight = Options.from_params(knobs), detectors.Sight.from_params(knobs)
    fitted = detectors.fit_on(model.eval(), every.take(torch.arange(313)), sight, options)
    left = [str(path) for path in arrays.DATA.iterdir()]
    maps = Path("/proc/self/maps")
    lines = maps.read_text().splitlines() if maps.exists() else []
    mapped = sorted({line.split()[4] for line in lines if str(arrays.DATA) in line})  # by inode
    every_scored = detectors.score(fitted, detectors.see(model, every.take(torch.arange(400, 461)), sight))
    return {"scores": every_scored, "left": left, "mapped": distributed.gathered(mapped)}


def learn(name: str, folder: Path, count: int = 1200, **changes: object) -> dict[str, object]:
    """A training of a few epochs in batches of 48 on the digits."""
    train_set, val_set = parts(digits())
    train_set = train_set.take(torch.arange(count))
    if name == "whitened_cnn":
        model = new_model(digits())
    else:
        torch.manual_seed(0)
        model = models.build(name, channels=1, classes=train_set.classes)
        model.adapt(images.to_float(train_set.images))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = name == "simple_cnn"
    recipe = replace(
        RECIPE, batch_size=48, epochs=2, learning_rate=0.05 if plain else 0.4, filter_rate=None if plain else 0.1
    )
    settings = replace(SETTINGS, fraction=0.7, undo_overfitting=False, **changes)
    result = training.train(
        model, train_set, val_set, recipe, Adversary(model, val_set, settings), resume_in=folder, name="x"
    )
    return {"before": before, "state": model.state_dict(), "rows": result.rows}


def disagree() -> dict[str, object]:
    distributed.agree("params.yaml", distributed.rank())
    return {}


TASKS = {
    "judge": lambda folder: judge(),
    "fit": fit,
    "simple": partial(learn, "simple_cnn"),
    "trades": partial(learn, "simple_cnn", count=96, attack="trades"),
    "whitened": partial(learn, "whitened_cnn"),
    "disagree": lambda folder: disagree(),
}

if __name__ == "__main__":
    task, file = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    if distributed.is_rank():
        with distributed.joined(CPU):
            artifacts.write_checkpoint(file, TASKS[task](file.parent))
    else:
        artifacts.write_checkpoint(file, TASKS[task](file.parent))
