"""OOD scores of one model: ours, all from one pass over the images, against pytorch-ood's detectors one by one.

Each of its detectors is fitted on a loader of training images and asked for the scores of a loader of ID and OOD
images, as its documentation shows; both sides compute the same scores, and their ranks are compared.
"""

import torch
from scipy import stats
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import common
from stages.common import detectors, evaluation, images, params, sampling
from stages.common.errors import run
from stages.common.images import ImageSet

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


def data(quick: bool):
    """The model, training images, images to score."""
    if quick:
        net, x, y = common.digits(400)
        del net
        from stages.common import models

        torch.manual_seed(0)
        model = models.build("whitened_cnn", channels=1, classes=list("0123456789"), widths=[8, 16]).eval()
        model.linear.weight.data *= 20  # an untrained net's softmax is flat: in the peer's float32, mostly rounding
        whole = ImageSet((x * 255).to(torch.uint8), y, model.classes)
        return model, whole.take(torch.arange(300)), whole.take(torch.arange(300, 400))
    train, test, ood = (images.read(name) for name in ("train", "test", "ood"))
    model = evaluation.load_both(test)["standard"]
    scored = [part.take(sampling.representative(part.labels, SCORED)).images for part in (test, ood)]
    return (
        model,
        train.take(sampling.representative(train.labels, FIT)),
        ImageSet(torch.cat(scored), torch.zeros(2 * SCORED, dtype=torch.int64), test.classes),
    )


def ours(model, train, scored) -> dict[str, torch.Tensor]:
    sight, options = detectors.settings(params.load())
    fitted = detectors.fit_on(model, train, sight, options, names=SAME)
    return detectors.score(fitted, detectors.see(model, scored, sight, names=("plain",)))


def peer(model, train, scored) -> dict[str, torch.Tensor]:
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
    images.device("cpu")
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
