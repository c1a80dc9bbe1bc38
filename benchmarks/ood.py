"""OOD scores of one model: ours, all from one pass over the images, against pytorch-ood's detectors one by one.

Each of its detectors is fitted on a loader of training images and asked for the scores of a loader of ID and OOD
images, as its documentation shows; both sides compute the same scores, and their ranks are compared.
"""

import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import common
from stages.common import device, evaluation, images, models, params
from stages.common.detection import detectors
from stages.common.detection.scores import Options
from stages.common.errors import UserError, run
from stages.common.images import ImageSet
from stages.common.models.architectures import WhitenedCNN

FIT, SCORED = 5000, 1000  # training images; ID and OOD images each. A whole set would take the peer half an hour
SAME = (
    "max_logit",
    "max_softmax",
    "energy",
    "entropy",
    "generalized_entropy",
    "knn",
    "mahalanobis",
    "relative_mahalanobis",
    "vim",
    "fdbd",
    "nnguide",
)


def data(quick: bool) -> tuple[WhitenedCNN, ImageSet, ImageSet]:
    """The model, training images, images to score."""
    if quick:
        train, scored = common.hold_out(common.digits(400), 100)
        torch.manual_seed(0)
        model = models.build("whitened_cnn", channels=1, classes=train.classes, widths=[8, 16]).eval()
    else:
        train, test, ood = (images.read(name) for name in ("train", "test", "ood"))
        model = evaluation.load_both(test, torch.device("cpu"))["standard"]
        pixels = torch.cat([common.take(part, SCORED).images for part in (test, ood)])
        train = common.take(train, FIT)
        scored = ImageSet(pixels, torch.zeros(len(pixels), dtype=torch.int64), test.classes)
    if not isinstance(model, WhitenedCNN):
        raise UserError("the peer's ViM and fDBD ask for the last layer as whitened_cnn has it: train that one first")
    if quick:
        model.linear.weight.data *= 20  # an untrained net's softmax is flat: in the peer's float32, mostly rounding
    return model, train, scored


def ours(model: WhitenedCNN, train: ImageSet, scored: ImageSet) -> dict[str, torch.Tensor]:
    knobs = params.load()
    sight = detectors.Sight.from_params(knobs)
    fitted = detectors.fit_on(model, train, sight, Options.from_params(knobs), names=SAME)
    return detectors.score(fitted, detectors.see(model, scored, sight, names=("plain",)))


def peer(model: WhitenedCNN, train: ImageSet, scored: ImageSet) -> dict[str, torch.Tensor]:
    from pytorch_ood import detector as d

    knobs = params.load().ood_eval
    head = torch.nn.Linear(model.linear.in_features, model.linear.out_features)
    head.weight.data = model.linear.weight.data / 9  # what `head` does, in the form that ViM and fDBD ask for
    head.bias.data.zero_()
    principal = round(knobs.vim_share * model.linear.in_features)
    theirs = {
        "max_logit": d.MaxLogit(model),
        "max_softmax": d.MaxSoftmax(model, t=knobs.temperature),
        "energy": d.EnergyBased(model),
        "entropy": d.Entropy(model),
        "generalized_entropy": d.GEN(model),
        "knn": d.KNN(model.features, k=knobs.neighbours),
        "mahalanobis": d.Mahalanobis(model.features),
        "relative_mahalanobis": d.RMD(model.features),
        "vim": d.ViM(model.features, principal, head.weight, head.bias),
        "fdbd": d.fDBD(model.features, head),
        "nnguide": d.NNGuide(model.features, head, k=knobs.guides),
    }
    to_fit, to_score = (
        DataLoader(TensorDataset(images.to_float(part.images), part.labels), batch_size=images.BATCH_SIZE)
        for part in (train, scored)
    )
    found = {}
    for name in SAME:
        theirs[name].fit(to_fit)
        with torch.no_grad():
            found[name] = -torch.cat([theirs[name].predict(x) for x, _ in to_score])
    return found


def measure(quick: bool) -> dict[str, float]:
    """Seconds of both sides, their ratio, and the lowest rank correlation of a score between them."""
    device.keep_freed_memory()
    given = data(quick)
    mine, other = ours(*given), peer(*given)
    agreement = {name: stats.spearmanr(mine[name], other[name]).statistic for name in SAME}
    seconds = common.alternate({"ours": lambda: ours(*given), "peer": lambda: peer(*given)}, 1 if quick else 2)
    return {
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "ratio": seconds["peer"] / seconds["ours"],
        "lowest_rank_correlation": min(agreement.values()),
    }


def main() -> None:
    row = measure(common.asked_quick(__doc__))
    print(common.machine())
    print(
        f"{len(SAME)} OOD scores against pytorch-ood: {row['ratio']:.2f} times "
        f"({row['ours_s']:.1f} s, {row['peer_s']:.1f} s); lowest rank correlation {row['lowest_rank_correlation']:.6f}"
    )


if __name__ == "__main__":
    run(main)
