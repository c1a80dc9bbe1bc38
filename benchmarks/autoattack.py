"""How robust the robust model is by the strongest attacks at hand, and whether the audit's own agree with them.

    python -m benchmarks.autoattack                  # eps 8/255 and the one of params.yaml; half an hour
    python -m benchmarks.autoattack --eps 8/255 --images 100

AutoAttack (Croce and Hein 2020) in its standard version: APGD on cross-entropy, targeted APGD and targeted FAB of 100
steps each, and Square of 5,000 queries, as torchattacks implements them (whose own `AutoAttack` takes ten steps).
PGD-50 from ten starts runs on 1,000 images. The audit's strongest attack, PGD from its restarts and then on the margin
to every wrong class, meets AutoAttack's images.
"""

import argparse
import time
from dataclasses import replace

import torch

from benchmarks import common
from stages.common import artifacts, attacks, device, evaluation, images, models, params, robustness
from stages.common.audit.strongest import by_pgd
from stages.common.audit.subject import Subject
from stages.common.errors import UserError, run
from stages.common.images import ImageSet
from stages.common.models import Classifier

STEPS, RESTARTS, PGD_IMAGES = 50, 10, 1000
FEWEST = 4  # classes: logits that the targeted difference of logits ratio looks at (Croce and Hein 2020)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--eps",
        type=common.budget,
        nargs="+",
        help="budgets in pixels of [0, 1], such as 8/255 (default: that and params.yaml's)",
    )
    parser.add_argument("--images", type=int, default=500, help="that AutoAttack attacks (default 500)")
    parser.add_argument("--checkpoint", default=str(artifacts.CHECKPOINTS / "robust.pt"))
    args = parser.parse_args()
    knobs = params.load()
    budgets = args.eps or sorted({attacks.EIGHT, knobs.eps})
    device.keep_freed_memory()
    model, test = models.load_checkpoint(args.checkpoint), images.read("test")
    if len(model.classes) < FEWEST:
        raise UserError(
            f"{args.checkpoint} knows {len(model.classes)} classes: AutoAttack's targeted loss needs {FEWEST}; "
            "see the audit's strongest attack, which takes any number"
        )
    print(common.machine())
    lines = [
        f"| eps | clean | FGSM | PGD-{STEPS} x {RESTARTS} | the audit's PGD-{knobs.audit.pgd_steps} x "
        f"{knobs.audit.restarts} | and its margins | AutoAttack | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for eps in budgets:
        start = time.perf_counter()
        many, few = common.take(test, PGD_IMAGES), common.take(test, args.images)
        clean = evaluation.accuracy(model, test)
        fgsm = (robustness.fgsm_predictions(model, test, [eps])[0] == test.labels).double().mean()
        strong = restarted(model, many, eps, STEPS, RESTARTS, knobs.seed)
        print(f"eps {eps:.4f}: clean {clean:.4f}  FGSM {fgsm:.4f}  PGD-{STEPS} x {RESTARTS} {strong:.4f}", flush=True)
        audited = audit(model, few, eps, knobs)
        with attacks.searching(bfloat16=device.bfloat16(knobs.precision, device.of(model))):
            pgd, strongest = (float(left.double().mean()) for left in (audited.pgd_restarted, audited.strongest))
        print(f"eps {eps:.4f}: the audit's PGD {pgd:.4f}, and its margins {strongest:.4f}", flush=True)
        auto = autoattack(model, few, eps, knobs.seed)
        minutes = (time.perf_counter() - start) / 60
        print(f"eps {eps:.4f}: AutoAttack {auto:.4f}, all in {minutes:.0f} minutes", flush=True)
        lines.append(
            f"| {eps:.4f} | {clean:.3f} | {fgsm:.3f} | {strong:.3f} ({len(many)} images) | {pgd:.3f} | "
            f"{strongest:.3f} | {auto:.3f} ({len(few)} images) | {minutes:.0f} |"
        )
    print("\n".join(["", *lines]))


def restarted(model: Classifier, image_set: ImageSet, eps: float, steps: int, restarts: int, seed: int) -> float:
    """Accuracy under PGD from several starts, an image counting as broken if one of them breaks it."""
    clean = evaluation.predictions(model, image_set.images)
    taken = by_pgd(model, image_set, eps, clean, steps=steps, seeds=range(seed, seed + restarts))
    return float((taken == image_set.labels).double().mean())


def audit(model: Classifier, image_set: ImageSet, eps: float, knobs: params.Params) -> Subject:
    """What the audit makes of these images, with its own sizes."""
    subject = Subject.from_params(knobs, model=model, other=model, defended=True, image_set=image_set)
    return replace(subject, eps=eps, epsilons=(eps,))


def autoattack(model: Classifier, image_set: ImageSet, eps: float, seed: int) -> float:
    """Accuracy under AutoAttack's four attacks in turn, each on the images that the ones before it left correct."""
    from torchattacks import APGD, APGDT, FAB, Square

    classes = len(model.classes)
    shared = {"eps": eps, "seed": seed, "n_restarts": 1}
    in_turn = {
        "APGD-CE": APGD(model, steps=100, loss="ce", **shared),
        "APGD-T": APGDT(model, steps=100, n_classes=classes, **shared),
        "FAB-T": FAB(model, steps=100, multi_targeted=True, n_classes=classes, **shared),
        "Square": Square(model, n_queries=5000, **shared),
    }
    # contiguous: FAB flattens gradients, which take their image's layout
    x, y = images.to_float(image_set.images).contiguous(), image_set.labels
    alive = evaluation.predictions(model, image_set.images) == y
    for name, attack in in_turn.items():
        chosen = alive.nonzero().squeeze(1)
        if len(chosen) == 0:
            break
        attacked = attack(x[chosen], y[chosen]).clamp(0, 1)
        if float((attacked - x[chosen]).detach().abs().max()) > eps + 1e-5:
            raise RuntimeError(f"{name} left its budget")
        with torch.no_grad():
            alive[chosen] = model(attacked.contiguous(memory_format=torch.channels_last)).argmax(1) == y[chosen]
        print(f"  after {name:8} {float(alive.double().mean()):.4f}", flush=True)
    return float(alive.double().mean())


if __name__ == "__main__":
    run(main)
