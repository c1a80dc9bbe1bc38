"""What a run has found, in words: for each section of the report what to see in it, and what not to believe.

Every sentence is made from metrics/, plots/ and params.yaml: none is true of one data set alone.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scripts import summary, verdicts
from stages.common import artifacts, params
from stages.common.errors import UserError

METRICS = (
    "data",
    "train_standard",
    "train_robust",
    "fgsm",
    "targeted",
    "ood",
    "ood_attack",
    "audit",
    "autoattack",
    "breakdown",
    "corruptions",
    "certify",
)
TABLES = ("targeted_sweep", "classes", "certified", "audit_verdicts")
NAMED = 5  # class names that stand in a sentence; more are counted
SAME = 0.005  # a difference that three places do not show


class Results(NamedTuple):
    """metrics/*.json and plots/*.csv by name without the ending, and the parameters that they were made with."""

    metrics: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    knobs: params.Params


class Said(NamedTuple):
    """One section's sentences, plain text. Either may be empty."""

    see: str
    doubt: str


def read() -> Results:
    """The results of the working tree. Raises UserError for a file that is missing."""
    metrics = {name: json.loads(_present(artifacts.METRICS / f"{name}.json").read_text()) for name in METRICS}
    tables = {  # n/a is a verdict, and may be a class
        name: pd.read_csv(_present(artifacts.PLOTS / f"{name}.csv"), keep_default_na=False) for name in TABLES
    }
    return Results(metrics, tables, params.load())


def _present(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro`")
    return path


def in_short(found: Results) -> str:
    """What robust training buys, and what it costs: the study's question."""
    of, areas = found.metrics["fgsm"], found.metrics["ood"]
    bought = of["robust"]["pgd"] - of["standard"]["pgd"]
    clean = of["robust"]["clean"] - of["standard"]["clean"]
    detection = areas["robust"]["max_logit"]["auroc"] - areas["standard"]["max_logit"]["auroc"]
    strongest = [found.metrics["audit"][model]["strongest"] for model in artifacts.MODELS]
    return (
        f"Against the standard model, robust training is worth {_points(bought)} of accuracy under PGD at eps "
        f"{found.knobs.eps:.4g}, {_points(clean)} on clean images, and {detection:+.3f} of AUROC where max logit tells "
        f"images of no class. The strongest attack leaves the standard model {strongest[0]:.3f} and the robust one "
        f"{strongest[1]:.3f}."
    )


def data(found: Results) -> Said:
    of = found.metrics["data"]
    sizes, test = of["sizes"], of["images_per_class"]["test"]
    copies, chance = sum(of["copies"].values()), max(test.values()) / sum(test.values())
    return Said(
        f"{sizes['train']:,} images of {len(of['classes'])} classes are learnt from, {sizes['val']:,} watch the "
        f"training, {sizes['test']:,} are the test; {sizes['ood']:,} images of {_names(of['ood_classes'])} are never "
        "learnt.",
        f"The same image stands twice in {copies:,} cases, listed below: figures that rest on these are too good."
        if copies
        else f"Always answering the commonest class is right on {chance:.0%} of the test images: an accuracy near that "
        "shows no knowledge.",
    )


def training(found: Results) -> Said:
    standard, robust = (found.metrics[f"train_{model}"] for model in artifacts.MODELS)
    plain, hardened = standard["accuracy"]["test"], robust["accuracy"]["test"]
    cost = plain - hardened
    price = f"{_points(-cost)} before any attack" if abs(cost) > SAME else "robust training changes nothing there"
    doubts = [
        f"FGSM on the validation images (at the end {robust['val_fgsm']:.3f}) is the attack that was trained on: PGD "
        f"beside it ({robust['val_pgd']:.3f}) tells whether it is robustness."
    ]
    if robust["overfitted_epochs"]:
        kept = "undone" if found.knobs.train_robust.undo_overfitting else "kept"
        doubts.append(f"Epochs that overfitted to the one step and were {kept}: {robust['overfitted_epochs']}.")
    if robust.get("trained_eps", found.knobs.eps) < found.knobs.eps - 1e-4:
        doubts.append(f"The robust model was trained at no more than {robust['trained_eps']:.4g}, not at eps.")
    return Said(
        f"The standard model is right on {plain:.3f} of the clean test images, the robust one on {hardened:.3f}: "
        f"{price}.",
        " ".join(doubts),
    )


def attacks(found: Results) -> Said:
    of, steps = found.metrics["fgsm"], found.knobs.fgsm_sweep.pgd_steps
    table = found.tables["audit_verdicts"]
    asked = table[(table["check"] == "fgsm_close_to_pgd") & table["verdict"].isin(verdicts.UNSOUND)]
    doubts = [
        f"Do not believe FGSM's figure of the {model} model: PGD leaves {of[model]['pgd']:.3f} of its images."
        for model in asked["model"]
    ]
    strongest = found.metrics["audit"]["robust"]["strongest"]
    doubts.append(
        "PGD's is an upper bound too: of the audit's images the strongest attack leaves the robust model "
        f"{strongest:.3f}."
    )
    return Said(
        f"At eps {found.knobs.eps:.4g} one step (FGSM) leaves the standard model {of['standard']['fgsm']:.3f} and the "
        f"robust one {of['robust']['fgsm']:.3f}; {steps} steps (PGD) leave {of['standard']['pgd']:.3f} and "
        f"{of['robust']['pgd']:.3f}.",
        " ".join(doubts),
    )


def targeted(found: Results) -> Said:
    of, sweep = found.metrics["targeted"], found.tables["targeted_sweep"]
    target = found.knobs.targeted_sweep.target or found.knobs.data.target or found.metrics["data"]["classes"][0]
    peak = sweep.nlargest(1, "standard_target_rate").iloc[0]
    falls_back = peak["standard_target_rate"] > of["standard"]["target_rate"] + SAME
    overshoots = falls_back and peak["eps"] < found.knobs.eps
    standard, robust = (
        f"{of[model]['target_rate']:.3f} of the other images for it ({of[model]['clean_target_rate']:.3f} if clean)"
        for model in artifacts.MODELS
    )
    return Said(
        f"At eps {found.knobs.eps:.4g} a step towards {target} makes the standard model take {standard}, "
        f"the robust one {robust}.",
        f"A low rate at eps is no robustness: a long step overshoots. The standard model's rate peaks at eps "
        f"{peak['eps']:.4g}, with {peak['standard_target_rate']:.3f}."
        if overshoots
        else "Accuracy that falls does not show that the target is hit: read the rate, beside that of clean images.",
    )


def ood(found: Results) -> Said:
    of = found.metrics["ood"]
    best = {model: _best(of[model], "auroc") for model in artifacts.MODELS}
    said = [
        f"{_spaced(best[model])} with AUROC {summary.cell(of[model], f'{best[model]}.auroc')} on the {model} model "
        f"(max logit: {of[model]['max_logit']['auroc']:.3f})"
        for model in artifacts.MODELS
    ]
    return Said(
        f"Images of no class are told best by {', by '.join(said)}.",
        f"The best of {len(of['standard'])} scores was found on these very images: quote one that was chosen before. "
        f"Average precision says little alone: max logit's {of['standard']['max_logit']['ap_id']:.3f} on the standard "
        f"model stands beside {of['base_rate']['id']:.3f} for guessing.",
    )


def ood_attack(found: Results) -> Said:
    of, sizes = found.metrics["ood_attack"], found.metrics["ood_attack"]["sizes"]
    falls = []
    for model in artifacts.MODELS:
        best = _best(of[model], "clean")
        falls.append(
            f"{_spaced(best)} from {of[model][best]['clean']:.3f} to {of[model][best]['pgd']:.3f} on the {model} model"
        )
    return Said(
        f"When PGD pushes both sides at eps {found.knobs.eps:.4g}, the AUROC of the best detector falls: "
        f"{', '.join(falls)}.",
        "0.5 is guessing; below it a detector prefers what it has never seen. Each attack follows its own detector, on "
        f"{min(sizes.values()):,} images a side: what still stands may fall to a better attack.",
    )


def audit(found: Results) -> Said:
    of = found.metrics["audit"]
    said = [
        f"{counts['passed']} checks pass, {counts['warned']} warn and {counts['failed']} fail on the {model} model"
        for model, counts in ((model, of[model]) for model in artifacts.MODELS)
    ]
    doubted = any(of[model][kind] for model in artifacts.MODELS for kind in ("warned", "failed"))
    passing = "A check that passes says only that this way of being wrong was not found."
    return Said(
        "; ".join(said) + ".",
        f"What each warning puts in doubt stands in its row, with the figure to believe instead. {passing}"
        if doubted
        else passing,
    )


def autoattack(found: Results) -> Said:
    of, audited, knobs = found.metrics["autoattack"], found.metrics["audit"]["robust"], found.knobs
    both = {
        budget: [summary.cell(of[model], f"{budget}.all") for model in artifacts.MODELS] for budget in ("eps", "l2")
    }
    apart = max(of["robust"]["eps"]["all_low"], audited["strongest_low"]) > min(
        of["robust"]["eps"]["all_high"], audited["strongest_high"]
    )
    return Said(
        f"AutoAttack leaves the standard model {both['eps'][0]} and the robust one {both['eps'][1]} at eps; its APGD "
        f"within {knobs.eps_l2:.4g} in L2 {both['l2'][0]} and {both['l2'][1]}.",
        f"{knobs.autoattack.images:,} images at most make wide intervals. The audit's own strongest attack leaves the "
        f"robust model {summary.cell(audited, 'strongest')} of its images: "
        + ("the two disagree, believe the lower one." if apart else "the two agree within their intervals."),
    )


def breakdown(found: Results) -> Said:
    of, table = found.metrics["breakdown"], found.tables["classes"]
    rows = table[(table["model"] == "robust") & (table["attack"] == "strongest")]
    worst, best = rows.nsmallest(1, "accuracy").iloc[0], rows.nlargest(1, "accuracy").iloc[0]
    errors = [f"{of[model][attack]['ece']:.3f}" for attack in ("clean", "pgd") for model in artifacts.MODELS]
    return Said(
        f"Under the strongest attack the robust model keeps {worst['accuracy']:.2f} of {worst['class']} and "
        f"{best['accuracy']:.2f} of {best['class']}, which its mean of {of['robust']['strongest']['accuracy']:.3f} "
        f"hides. Confidence is off by {errors[0]} (standard) and {errors[1]} (robust) on clean images, by {errors[2]} "
        f"and {errors[3]} under PGD.",
        f"A class has some {rows['images'].median():.0f} images: read the whiskers, not the order of the dots.",
    )


def corruptions(found: Results) -> Said:
    of, by_kind = found.metrics["corruptions"], dict(found.metrics["corruptions"]["robust_minus_standard"])
    for whole in ("uncorrupted", "mean"):
        del by_kind[whole]
    most, least = max(by_kind, key=by_kind.__getitem__), min(by_kind, key=by_kind.__getitem__)
    standard, robust = of["standard"], of["robust"]
    return Said(
        f"Over all kinds and severities the standard model keeps {standard['mean']:.3f}, the robust one "
        f"{robust['mean']:.3f}: {_points(by_kind[most])} under {_spaced(most)}, {_points(by_kind[least])} under "
        f"{_spaced(least)}.",
        "The mean depends on the kinds that were asked. Without corruption the two stand at "
        f"{standard['uncorrupted']:.3f} and {robust['uncorrupted']:.3f}: a flat line that starts low is no strength.",
    )


def certified(found: Results) -> Said:
    table, knobs = found.tables["certified"], found.knobs
    if table.empty:
        return Said("Nothing was certified: certify.images is 0.", "")
    radius = table["radius"].max()
    rows = table[table["radius"] == radius]
    low, high = (rows[rows["curve"] == curve].iloc[0] for curve in ("certified", "attacked"))
    wrong = found.metrics["certify"]["robust"]["contradicted"]
    return Said(
        f"Under noise of {knobs.certify.sigma:.4g} the robust model provably keeps {low['accuracy']:.3f} "
        f"[{low['low']:.3f}, {low['high']:.3f}] of the images within {radius:.4g} in L2; an attack there leaves "
        f"{high['accuracy']:.3f}. The truth lies between.",
        f"This is the model under noise, by the Euclidean norm, on {knobs.certify.images:,} images at most: it proves "
        "nothing about eps." + (f" Certificates that an attack has broken, so wrong ones: {wrong}." if wrong else ""),
    )


SECTIONS: Mapping[str, Callable[[Results], Said]] = {
    section.__name__: section
    for section in (
        data,
        training,
        attacks,
        targeted,
        ood,
        ood_attack,
        audit,
        autoattack,
        breakdown,
        corruptions,
        certified,
    )
}


def _points(difference: float) -> str:
    """A difference of shares, in points of a hundred with its sign; a tenth where it is small."""
    points = 100 * difference
    shown = f"{points:+.0f}" if abs(points) >= 2 else f"{points:+.1f}"
    return f"{shown} points"


def _best(figures: Mapping[str, Mapping[str, float]], key: str) -> str:
    """The name of the largest figure `key`."""
    return max(figures, key=lambda name: figures[name][key])


def _spaced(name: str) -> str:
    return name.replace("_", " ")


def _names(names: list[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
