"""The pipeline on photographs of more than 64 pixels, in every stage that looks at each of their pixels."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from stages import (
    audit,
    autoattack,
    breakdown,
    certify,
    corruption_sweep,
    fgsm_sweep,
    ood_attack,
    prepare,
    train_robust,
    train_standard,
)
from stages.common import artifacts
from tests.repository import ROOT

KNOBS = {
    "dataset": "folder",
    "eps": "4/255",
    "model.name": "simple_cnn",
    "models.simple_cnn.learning_rate": 5.0,
    "datasets.folder.prepare.image_size": 96,
    "datasets.folder.prepare.extra_sets": [],
    "datasets.folder.training.batch_size": 8,
    "datasets.folder.training.early_size": 72,
    "datasets.folder.train_standard.epochs": 4,
    "datasets.folder.train_robust.epochs": 2,
    "train_robust.undo_overfitting": False,
    "train_robust.pgd_steps": 1,
    "fgsm_sweep.epsilons": [0, 0.1],
    "fgsm_sweep.pgd_images": 8,
    "fgsm_sweep.pgd_steps": 2,
    "ood_eval.neighbours": 3,
    "ood_eval.guides": 3,
    "ood_attack.detectors": ["max_logit"],
    "ood_attack.epsilons": [0.1],
    "ood_attack.images": 4,
    "ood_attack.pgd_steps": 1,
    "breakdown.images": 4,
    "breakdown.pgd_steps": 1,
    "autoattack.images": 2,
    "autoattack.queries": 2,
    "corruption_sweep.images": 2,
    "certify.images": 1,
    "certify.samples": 4,
    "certify.selection_samples": 2,
    "certify.radii": [0, 0.1],
    "audit.images": 4,
    "audit.pgd_steps": 1,
    "audit.restarts": 1,
    "audit.square_images": 2,
    "audit.square_queries": 2,
}


def photographs(folder: str, brightness: int, count: int, rng: np.random.Generator) -> None:
    Path(folder).mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 60, (100, 120, 3), np.uint8) + np.uint8(brightness)
        Image.fromarray(pixels).save(f"{folder}/{i}.jpg")


def test_the_stages_take_images_of_96_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, brightness, count in (("dark", 0, 24), ("light", 190, 24)):
        photographs(f"data/raw/folder/{name}", brightness, count, rng)
    photographs("data/raw/folder_ood/medium", 100, 16, rng)
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in KNOBS.items():
        *sections, last = key.split(".")
        section = content
        for part in sections:
            section = section[part]
        section[last] = value
    Path("params.yaml").write_text(yaml.safe_dump(content))

    attacked = (fgsm_sweep, ood_attack, breakdown, autoattack, corruption_sweep, certify, audit)
    for stage in (prepare, train_standard, train_robust, *attacked):
        stage.main()
    found = {path.stem: json.loads(path.read_text()) for path in artifacts.METRICS.iterdir()}
    assert found["data"]["image_shape"] == [3, 96, 96]
    assert found["train_standard"]["accuracy"]["test"] == 1
    assert all(0 <= found["fgsm"][model]["pgd"] <= 1 and found["audit"][model]["passed"] for model in artifacts.MODELS)
