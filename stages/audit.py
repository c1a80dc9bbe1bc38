"""Ask of both models, and of the attacks on them, whether the figures of the other stages may be believed.

In:  data/prepared/test.npz, data/checkpoints/{standard,robust}.pt
Out: metrics/audit.json (1 or 0 for each check, how many passed, warned and failed, accuracy at eps under the
     strongest attack, and the median of the smallest budgets that change a prediction),
     plots/audit_verdicts.csv (what each check saw), plots/audit_{standard,robust}.csv (accuracy against eps under every
     attack), plots/smallest_eps.csv, plots/images/loss_surface.png

A failed check does not stop the run unless audit.strict is true: it says which figure not to believe, and why.
"""

import sys

import numpy as np
import torch
from torch import Tensor

from stages.common import artifacts, checks, errors, evaluation, figures, images, params, probes, sampling
from stages.common.subject import Subject

VERDICTS = {"pass": "passed", "warn": "warned", "FAIL": "failed"}
STYLES = {"pass": "green", "warn": "yellow", "FAIL": "bold red"}
WIDTH = max(map(len, checks.CHECKS))
SURFACE = np.linspace(-1, 1, 17)  # of eps, in both directions
SEARCHED = np.linspace(0, 0.3, 61).tolist()  # budgets of plots/smallest_eps.csv


def main() -> None:
    knobs = params.load()
    device = images.device(knobs.device)
    test = images.read("test")
    both = evaluation.load_both(test, device)
    audited = test.take(sampling.representative(test.labels, knobs.audit.images))

    metrics, verdicts, smallest, surfaces = {}, [], [], {}
    for name, other in (("standard", "robust"), ("robust", "standard")):
        subject = Subject(
            model=both[name],
            other=both[other],
            defended=name == "robust",
            image_set=audited,
            target=len(audited.classes) - 1,  # any class serves: what is asked is whether the step goes there
            eps=knobs.eps,
            epsilons=tuple(knobs.fgsm_sweep.epsilons),
            pgd_steps=knobs.audit.pgd_steps,
            restarts=knobs.audit.restarts,
            square_images=knobs.audit.square_images,
            square_queries=knobs.audit.square_queries,
            seed=knobs.seed,
            device=device,
        )
        print(f"{name} model, {len(audited)} test images", flush=True)
        rows = [row(name, check, subject) for check in checks.CHECKS]
        verdicts += rows
        counts = {kind: sum(r["verdict"] == verdict for r in rows) for verdict, kind in VERDICTS.items()}
        medians = {attack: median(eps) for attack, eps in subject.smallest_eps.items()}
        left = {"strongest": float(subject.strongest.double().mean()), "median_eps": medians}
        metrics[name] = {r["check"]: int(r["verdict"] == "pass") for r in rows} | counts | left
        artifacts.write_table(artifacts.PLOTS / f"audit_{name}.csv", list(subject.curves()))
        smallest += [{"model": name, **shares} for shares in subject.shares_changed(SEARCHED)]
        surfaces[name] = surface(subject)

    artifacts.write_table(artifacts.PLOTS / "audit_verdicts.csv", verdicts)
    artifacts.write_table(artifacts.PLOTS / "smallest_eps.csv", smallest)
    picture = figures.loss_surfaces(surfaces, SURFACE * knobs.eps)
    artifacts.write_figure(artifacts.IMAGES / "loss_surface.png", picture)
    artifacts.write_metrics(artifacts.METRICS / "audit.json", metrics)
    failed = {name: counts["failed"] for name, counts in metrics.items()}
    summary = (
        f"{failed['standard']} of {len(checks.CHECKS)} checks failed on the standard model, "
        f"{failed['robust']} on the robust one"
    )
    if knobs.audit.strict and sum(failed.values()):
        raise errors.UserError(f"audit: {summary}; audit.strict is true, so this run fails")
    print(f"audit: {summary}\nnext: dvc metrics diff, dvc plots show, make report")


def row(model: str, check: str, subject: Subject) -> dict[str, str]:
    """Make one check and print its line."""
    finding = checks.CHECKS[check](subject)
    meaning = "" if finding.passed else finding.otherwise
    verdict = errors.paint(finding.verdict, STYLES[finding.verdict], sys.stdout)
    print(f"  {verdict}  {check:<{WIDTH}}  {finding.seen}{meaning and ': '}{meaning}", flush=True)
    return {"model": model, "check": check, "verdict": finding.verdict, "seen": finding.seen, "meaning": meaning}


def median(eps: Tensor) -> float:
    return float(eps.clamp(max=probes.LARGEST).double().median())


def surface(subject: Subject) -> Tensor:
    """The mean loss round the images that are classified correctly, the first batch of them."""
    chosen = subject.image_set.take(subject.correct.nonzero().squeeze(1)[: images.BATCH_SIZE // 5])
    x, y = images.to_float(chosen.images, subject.device), chosen.labels.to(subject.device)
    if len(x) == 0:
        return torch.zeros(len(SURFACE), len(SURFACE), dtype=torch.float64)
    return probes.loss_surface(subject.model, x, y, SURFACE * subject.eps, generator=subject.generator())


if __name__ == "__main__":
    errors.run(main)
