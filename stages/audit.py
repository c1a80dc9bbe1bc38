"""Ask of both models, and of the attacks on them, whether the figures of the other stages may be believed.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt, metrics/certify.json
Out: metrics/audit.json (1 or 0 for each check that had something to look at, how many passed, warned and failed,
     accuracy at eps and at 8/255 under the strongest attack, and the median of the smallest budgets that change a
     prediction),
     plots/audit_verdicts.csv (what each check saw), plots/audit_{standard,robust}.csv (accuracy against eps under every
     attack), plots/smallest_eps.csv, plots/images/loss_surface.png, data/rows/audit.csv, each image's smallest budgets

A failed check does not stop the run unless audit.strict is true: it says which figure not to believe, and why.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.common import artifacts, attacks, device, errors, evaluation, figures, images, params, rows, stage
from stages.common.artifacts import MODELS
from stages.common.audit import certificate, probes, verdicts
from stages.common.audit.finding import VERDICTS
from stages.common.audit.subject import Subject

SURFACE = np.linspace(-1, 1, 17)  # of eps, in both directions
SURFACE_IMAGES = 100  # the loss is a mean over so many, of those that are classified correctly
SEARCHED = np.linspace(0, 0.3, 61).tolist()  # budgets of plots/smallest_eps.csv


def main() -> None:
    knobs = params.load_prepared()
    test = images.read("test")
    both = evaluation.load_both(test, where := device.choose(knobs.device))
    chosen = images.sample(test.labels, knobs.audit.images)
    audited = test.take(chosen)

    metrics: dict[str, dict[str, Any]] = {}
    seen, smallest, surfaces = [], [], {}
    budgets: dict[str, Tensor] = {}  # the smallest that were found, (N,), by column
    with attacks.searching(bfloat16=device.bfloat16(knobs.precision, where)):
        for name, other in (MODELS, MODELS[::-1]):
            subject = Subject.from_params(
                knobs,
                model=both[name],
                other=both[other],
                defended=name == "robust",
                image_set=audited,
                certificate=certificate.read(artifacts.METRICS / "certify.json", name),
            )
            print(f"{name} model, {len(audited)} test images", flush=True)
            made = verdicts.printed(verdicts.judge(subject))
            seen += [{"model": name, **verdict} for verdict in made]
            metrics[name] = verdicts.figures_of(subject, made)
            artifacts.write_table(artifacts.PLOTS / f"audit_{name}.csv", list(subject.curves()))
            smallest += [{"model": name, **shares} for shares in subject.shares_changed(SEARCHED)]
            budgets |= {f"{name}_smallest_{attack}": found for attack, found in subject.smallest_eps.items()}
            surfaces[name] = surface(subject)

    artifacts.write_table(artifacts.PLOTS / "audit_verdicts.csv", seen)
    artifacts.write_table(artifacts.PLOTS / "smallest_eps.csv", smallest)
    rows.write(rows.FOLDER / "audit.csv", rows.part("test", chosen, budgets))
    picture = figures.loss_surfaces(surfaces, (SURFACE * knobs.eps).tolist())
    artifacts.write_figure(artifacts.IMAGES / "loss_surface.png", picture)
    artifacts.write_metrics(artifacts.METRICS / "audit.json", metrics)
    asked = {name: sum(counts[kind] for kind in VERDICTS.values()) for name, counts in metrics.items()}
    summary = ", ".join(
        f"{metrics[name]['failed']} of {asked[name]} checks failed on the {name} model" for name in MODELS
    )
    if knobs.audit.strict and any(counts["failed"] for counts in metrics.values()):
        raise errors.UserError(f"audit: {summary}; audit.strict is true, so this run fails")
    print(f"audit: {summary}\nnext: dvc metrics diff, dvc plots show, make report")


def surface(subject: Subject) -> Tensor:
    """The mean loss round a fair sample of the images that are classified correctly; 0 if there are none."""
    right = subject.image_set.take(subject.correct.nonzero().squeeze(1))
    if len(right) == 0:
        return torch.zeros(len(SURFACE), len(SURFACE), dtype=torch.float64)
    chosen, where = right.take(images.sample(right.labels, SURFACE_IMAGES)), device.of(subject.model)
    x, y = images.to_float(chosen.images, where), chosen.labels.to(where)
    return probes.loss_surface(subject.model, x, y, (SURFACE * subject.eps).tolist(), generator=subject.generator())


if __name__ == "__main__":
    stage.run(main)
