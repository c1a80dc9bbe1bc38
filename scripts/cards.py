"""A model card for each trained model, docs/cards/{standard,robust}.md: what it is for, and which figures to believe.

    python -m scripts.cards             # write both; or make cards
    python -m scripts.cards --check     # write nothing; exit with 1 and name those that are stale

Everything in a card is of params.yaml, dvc.lock, metrics/ and plots/audit_verdicts.csv, but for INTENDED below.
tests/test_readme.py holds the committed cards to them.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scripts import summary, verdicts, weights
from stages.common import artifacts, errors, models, params
from stages.common.artifacts import METRICS, MODELS
from stages.common.errors import UserError
from stages.common.origin_names import CUSTOM
from stages.common.params import Params

FOLDER = Path("docs/cards")
READ = ("data", "fgsm", "targeted", "ood", "corruptions", "breakdown", "autoattack", "audit")  # of metrics/

INTENDED = {
    "standard": "It is the undefended half of a comparison: a sound classifier that nothing was done to protect. Use "
    "it as a baseline, as a target for attacks, and as a start for detectors of what a classifier has never seen.",
    "robust": "It is the defended half of a comparison: trained on FGSM examples, to be measured beside the standard "
    "one. Use it as a baseline for cheap adversarial training, as a target for stronger attacks, and to see what "
    "robustness costs.",
}
NOT_INTENDED = (
    "It is for no decision about anybody or anything: it knows {count} classes and calls everything else one of these, "
    "it has seen images of {size}x{size} pixels alone, and whoever gains from fooling it can."
)

# The rows of the figures that a check speaks of, by what their titles hold; of a check that is not here: all attacks'
ATTACKED, FGSM, PGD, TARGETED = "under ", "under FGSM at", "under PGD at", "targeted"
DOUBTED = {
    **dict.fromkeys(("fgsm_raises_loss", "fgsm_below_clean", "fgsm_falls_with_eps", "fgsm_close_to_worst_case"), FGSM),
    **dict.fromkeys(("gradients_agree_nearby", "noise_weaker_than_fgsm", "fgsm_close_to_pgd"), FGSM),
    **dict.fromkeys(("pgd_at_most_fgsm", "pgd_falls_with_eps", "pgd_converged", "pgd_restarts_agree"), PGD),
    **dict.fromkeys(("pgd_close_to_margins", "pgd_unbounded_reaches_zero", "undefended_is_broken"), PGD),
    **dict.fromkeys(("transfer_weaker_than_pgd", "square_weaker_than_pgd"), PGD),
    **dict.fromkeys(("targeted_lowers_loss", "target_is_hit"), TARGETED),
    "beats_the_commonest_class": "",  # all rows
}
SAID = {"FAIL": "**not to be believed**", "warn": "with care"}

Metrics = Mapping[str, Any]  # the content of each metrics/*.json, by its name without the ending
Verdict = Mapping[str, str]  # a row of plots/audit_verdicts.csv


def card(which: str, knobs: Params, metrics: Metrics, checked: pd.DataFrame, md5: str) -> str:
    """Markdown: the card of one model. `checked` is plots/audit_verdicts.csv, `md5` that of the checkpoint."""
    found = checked[(checked["model"] == which) & checked["verdict"].isin(list(SAID))]
    unsound = [{str(key): str(value) for key, value in row.items()} for row in found.to_dict("records")]
    data = metrics["data"]
    sections = {
        f"Model card: the {which} classifier": [
            "Written by `python -m scripts.cards` from params.yaml, dvc.lock, metrics/ and plots/audit_verdicts.csv: "
            "change these, or the program, and not this page.",
            "",
            *identity(which, knobs, data, md5),
        ],
        "Intended use": [
            INTENDED[which],
            "",
            NOT_INTENDED.format(count=len(data["classes"]), size=data["image_shape"][-1]),
        ],
        "Training": [f"- {line}" for line in training(which, knobs, metrics)],
        "Figures": [*measured(knobs, data), "", *figures(which, metrics, unsound)],
        "Figures not to be believed": list(doubts(unsound, knobs)),
        "What it is bad at": [f"- {line}" for line in weaknesses(which, metrics)],
    }
    text = ("\n".join([f"## {title}", "", *lines, ""]) for title, lines in sections.items())
    return "\n".join(text).removeprefix("#")


def identity(which: str, knobs: Params, data: Metrics, md5: str) -> Iterator[str]:
    channels, height, width = data["image_shape"]
    rows = {
        "file": f"data/checkpoints/{which}.pt, MD5 {md5}: `make weights` brings it, `make export` writes it as "
        "safetensors and ONNX ([weights.md](../weights.md))",
        "architecture": architecture(which, knobs, data),
        "input": f"{channels} x {height} x {width} pixels in [0, 1], float32; it normalises them itself",
        "output": f"logits of {len(data['classes'])} classes: {', '.join(data['classes'])}",
        "data": f"{data['dataset']}, fingerprint {data['fingerprint']} ([data card](../data-card.md))",
        "license": "that of this project, [MIT](../../LICENSE)",
    }
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {name} | {text} |" for name, text in rows.items())


def architecture(which: str, knobs: Params, data: Metrics) -> str:
    """The net in words, with the number of its parameters if it is one of this project."""
    chosen = knobs.model_of(which)
    if chosen.name == CUSTOM:
        return f"{chosen.factory}, somebody else's"
    options = chosen.section.model_dump(exclude={"learning_rate", "filter_rate"})
    net = models.build(chosen.name, channels=data["image_shape"][0], classes=data["classes"], **options)
    said = "".join(f", {key} {str(value).strip('[]')}" for key, value in options.items())
    return f"{chosen.name}{said}; {sum(parameter.numel() for parameter in net.parameters()):,} parameters"


def training(which: str, knobs: Params, metrics: Metrics) -> Iterator[str]:
    """How it came to be, a sentence each."""
    section, data, found = knobs.trained(which), knobs.data, metrics[f"train_{which}"]
    sizes = metrics["data"]["sizes"]
    if section.weights is not None:
        yield f"Adopted: its weights are those of {section.weights}, and nothing was trained here."
    else:
        schedule = getattr(data, f"train_{which}")
        yield (
            f"{schedule.epochs} epochs of {sizes['train']:,} images in batches of {data.training.batch_size}, label "
            f"smoothing {section.label_smoothing:.4g}; the epoch kept is number {found['epoch']}. Seed {knobs.seed}."
        )
        if which == "robust":
            yield from defence(knobs, found)
    said = ", ".join(f"{found['accuracy'][split]:.3f} on {split}" for split in ("train", "val", "test"))
    yield f"Clean accuracy: {said} images ({', '.join(f'{sizes[split]:,}' for split in ('train', 'val', 'test'))})."


def defence(knobs: Params, found: Metrics) -> Iterator[str]:
    """The attack that the robust model was trained on, and what was seen while it was."""
    section = knobs.train_robust
    kinds = {
        "n-fgsm": f"N-FGSM (noise of {section.noise:g} eps before the step)",
        "rs-fgsm": "FGSM from a random start",
        "fgsm": "FGSM",
        "pgd": f"PGD with {section.steps} steps",
        "trades": f"TRADES with {section.steps} steps",
    }
    yield (
        f"{section.adversarial_fraction * 100:.4g} % of each batch is attacked by {kinds[section.attack]}; the budget "
        f"grows from 0 to {found['trained_eps']:.4g} over {section.ramp * 100:.4g} % of training."
    )
    yield (
        f"After each epoch PGD with {section.pgd_steps} steps attacks {section.validation_images:,} validation images: "
        f"of the epoch kept it leaves {found['val_pgd']:.3f}, FGSM {found['val_fgsm']:.3f}. Epochs that overfitted "
        f"catastrophically: {found['overfitted_epochs']}; that collapsed: {found['collapsed_epochs']}."
    )


def figures(which: str, metrics: Metrics, unsound: Sequence[Verdict]) -> Iterator[str]:
    """The rows of README's table for one model, each with the checks that object to it."""
    yield "| | | the audit |"
    yield "|---|---:|---|"
    found = {name: metrics[name] for name, _ in summary.ROWS.values()}
    for title, name, key in summary.rows(found):
        if shown := summary.cell(metrics[name][which], key):
            against = [row for row in unsound if DOUBTED.get(row["check"], ATTACKED) in title and key != "verdict"]
            worst = next((said for verdict, said in SAID.items() if verdict in {row["verdict"] for row in against}), "")
            names = ", ".join(row["check"] for row in against)
            yield f"| {title} | {shown} | {worst}{': ' * bool(against)}{names} |"


def measured(knobs: Params, data: Metrics) -> Iterator[str]:
    """What the figures are of."""
    yield (
        f"On test images, with intervals at {knobs.confidence * 100:g} %: PGD on {knobs.fgsm_sweep.pgd_images:,}, "
        f"corruptions on {knobs.corruption_sweep.images:,}, the audit on {knobs.audit.images:,}, AutoAttack on "
        f"{knobs.autoattack.images:,}, all else on {data['sizes']['test']:,}. eps is {knobs.eps:.4g} of the pixel "
        f"range [0, 1], eps_l2 {knobs.eps_l2:.4g}. What an attack leaves is an upper bound on robustness: the lowest "
        "figure counts. The last column has the checks that object to a figure."
    )


def doubts(unsound: Sequence[Verdict], knobs: Params) -> Iterator[str]:
    """Every check that warned or failed, what it saw and what that means."""
    if not unsound:
        yield "No check of the audit warned or failed. That is no proof: an attack that nobody has tried may do better."
        return
    yield (
        f"The audit ([audit.md](../audit.md)) looked at {knobs.audit.images:,} images at eps {knobs.eps:.4g}; what it "
        "says of an attack there holds of the same attack at 8/255. A failed check names figures that must not be "
        "believed, a warning figures to be read with care:"
    )
    yield ""
    yield "| check | verdict | what it saw | what that means |"
    yield "|---|---|---|---|"
    for row in sorted(unsound, key=lambda row: list(SAID).index(row["verdict"])):
        yield f"| {row['check']} | **{row['verdict']}** | {row['seen']} | {row['meaning']} |"


def weaknesses(which: str, metrics: Metrics) -> Iterator[str]:
    classes, ood, corrupted = metrics["breakdown"][which], metrics["ood"][which], metrics["corruptions"][which]
    clean, strongest, attacked = classes["clean"], classes["strongest"], classes["pgd"]
    yield (
        f"Its worst class: {clean['worst_class']:.2f} of its images are recognised, where {clean['accuracy']:.2f} of "
        f"all are; under the strongest attack {strongest['worst_class']:.2f}, where {strongest['accuracy']:.2f} are."
    )
    yield (
        f"Its confidence is no probability: it is off by {clean['ece']:.2f} on average on clean images, by "
        f"{attacked['ece']:.2f} under PGD."
    )
    kinds = {kind: share for kind, share in corrupted.items() if kind not in ("uncorrupted", "mean")}
    if kinds:
        worst = min(kinds, key=kinds.__getitem__)
        yield (
            f"Corruptions: {worst.replace('_', ' ')} is the worst, and leaves {kinds[worst]:.2f} of "
            f"{corrupted['uncorrupted']:.2f}."
        )
    yield (
        f"What it has never seen: where max logit accepts 95 % of the images of its classes, it accepts "
        f"{ood['max_logit']['fpr95'] * 100:.0f} % of others, and more once the detector is attacked "
        "([ood.md](../ood.md))."
    )
    yield "What is wrong with the data is wrong with the model ([data card](../data-card.md))."


def cards() -> dict[Path, str]:
    """The text of each card, by its place. Raises UserError where something that it is made from is missing."""
    try:
        names = (*READ, *(f"train_{which}" for which in MODELS))
        metrics = {name: json.loads((METRICS / f"{name}.json").read_text(encoding="utf-8")) for name in names}
    except (OSError, ValueError) as error:
        raise UserError(f"no figures to make cards of ({error}); run `dvc repro`") from None
    knobs, checked = params.load(), verdicts.read()
    md5s = {path.stem: md5 for path, md5 in weights.locked().items()}
    return {FOLDER / f"{which}.md": card(which, knobs, metrics, checked, md5s[which]) for which in MODELS}


def stale() -> list[Path]:
    """The cards that are not as this program would write them."""
    return [path for path, text in cards().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a card is stale")
    asked = parser.parse_args()

    def run() -> None:
        if asked.check:
            if found := stale():
                raise UserError(f"{' and '.join(map(str, found))}: not as the figures are; run `make cards`")
            return print(f"{FOLDER}: as the figures are")
        for path, text in cards().items():
            artifacts.write_bytes(path, text.encode())
            print(f"{path}: written")

    errors.run(run)


if __name__ == "__main__":
    main()
