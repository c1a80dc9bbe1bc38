"""OOD scores against pytorch-ood, against formulas written out, and by their properties."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from stages.common import images, params
from stages.common.detection import scores
from stages.common.detection.scores import SCORES, FitData, Options
from stages.common.errors import UserError
from tests.repository import ROOT

OPTIONS = Options(
    temperature=0.5,
    neighbours=5,
    gen_gamma=0.1,
    gen_classes=100,
    vim_share=0.67,  # 4 of 6 dimensions carry the classes
    guides=10,
)


def toy(size=400, classes=4, dimension=6, *, seed=0):
    """A linear classifier of Gaussian classes: training outputs, ID outputs, OOD outputs between the classes."""
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.eye(classes, dimension)

    def draw(centres):
        return centres + 0.7 * torch.randn(len(centres), dimension, generator=generator)

    def outputs(features):
        return features @ means.T, features

    labels = torch.arange(size) % classes
    train = draw(means[labels])
    return FitData(*outputs(train), labels), outputs(draw(means[labels])), outputs(draw(torch.zeros(size, dimension)))


def fitted(name, train=None, options=OPTIONS):
    return SCORES[name](train or toy()[0], options)


def logit_score(name, logits, options=OPTIONS):
    return fitted(name, options=options)(logits, torch.zeros(len(logits), 6))


@pytest.mark.parametrize("name", SCORES)
def test_in_distribution_scores_higher(name):
    train, inside, outside = toy()
    score = fitted(name, train)
    ours = score(*inside), score(*outside)
    assert all(side.dtype == torch.float64 and side.shape == (400,) and side.isfinite().all() for side in ours)
    # ViM looks at what the classes do not use, and there the two sets are alike
    assert roc_auc_score([1] * 400 + [0] * 400, torch.cat(ours)) > (0.8 if name == "vim" else 0.9)


@pytest.mark.parametrize("name", SCORES)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999))
def test_each_image_is_scored_by_itself(name, seed):
    train, (logits, features), _ = toy(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    score = fitted(name, train)
    torch.testing.assert_close(score(logits[order], features[order]), score(logits, features)[order])
    torch.testing.assert_close(score(logits[:1], features[:1]), score(logits, features)[:1])


@pytest.mark.parametrize("name", SCORES)
def test_the_order_of_training_images_does_not_matter(name):
    train, inside, _ = toy(60)
    shuffled = FitData(*(part.flip(0) for part in train))
    torch.testing.assert_close(fitted(name, shuffled)(*inside), fitted(name, train)(*inside))


@pytest.mark.parametrize("name", SCORES)
def test_inputs_are_left_alone(name):
    train, inside, _ = toy(60)
    before = [part.clone() for part in (*train, *inside)]
    fitted(name, train)(*inside)
    assert all(torch.equal(old, new) for old, new in zip(before, (*train, *inside), strict=True))


def test_logit_scores_equal_pytorch_ood():
    from pytorch_ood.detector import GEN, EnergyBased, Entropy, MaxLogit, MaxSoftmax

    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    oracles = {
        "max_logit": MaxLogit.score(logits),
        "energy": EnergyBased.score(logits),
        "entropy": Entropy.score(logits),
        "generalized_entropy": 10 * GEN.score(logits),  # the mean over the classes there, the paper's sum here
    }
    for name, oracle in oracles.items():
        torch.testing.assert_close(logit_score(name, logits), -oracle, msg=name)
    for temperature in (0.5, 1.0, 3.0):
        log_odds = logit_score("max_softmax", logits, replace(OPTIONS, temperature=temperature))
        torch.testing.assert_close(log_odds.sigmoid(), -MaxSoftmax.score(logits, temperature))


def test_feature_scores_rank_as_pytorch_ood():
    from pytorch_ood.detector import KNN, RMD, Mahalanobis

    train, inside, outside = toy()
    logits, features = torch.cat([inside[0], outside[0]]), torch.cat([inside[1], outside[1]])
    oracles = {"knn": KNN(None, k=5), "mahalanobis": Mahalanobis(None), "relative_mahalanobis": RMD(None)}
    for name, oracle in oracles.items():
        oracle.fit_features(train.features.double() if name == "knn" else train.features, train.labels)
        reference = -oracle.predict_features(features.double() if name == "knn" else features)
        ours = fitted(name, train)(logits, features)
        assert stats.spearmanr(ours, reference).statistic > 0.99999, name
        truth = [1] * 400 + [0] * 400
        assert roc_auc_score(truth, ours) == pytest.approx(roc_auc_score(truth, reference), abs=2e-4), name
        if name == "knn":
            torch.testing.assert_close(ours, reference, rtol=0, atol=1e-6)


def test_head_scores_equal_pytorch_ood():
    from pytorch_ood.detector import NNGuide, ViM, fDBD

    generator = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(6, 4).double()
    train, *others = (torch.randn(n, 6, generator=generator).abs() for n in (500, 200, 100))  # as after a ReLU
    features = torch.cat(others) * torch.cat([torch.ones(200), torch.full((100,), 0.3)])[:, None]
    with torch.no_grad():
        fit_data = FitData(head(train.double()), train.double(), torch.arange(500) % 4)
        logits = head(features.double())
    oracles = {
        "vim": ViM(None, 3, head.weight, head.bias),
        "fdbd": fDBD(None, head.float()),
        "nnguide": NNGuide(None, head.float(), k=7),
    }
    for name, oracle in oracles.items():
        oracle.fit_features(train, fit_data.labels)
        ours = SCORES[name](fit_data, replace(OPTIONS, vim_share=0.5, guides=7))(logits, features.double())
        torch.testing.assert_close(ours, -oracle.predict_features(features).double(), rtol=1e-4, atol=1e-4, msg=name)


def test_margin_is_the_gap_between_the_two_largest_logits():
    logits = torch.tensor([[1.0, 5.0, 3.0], [2.0, 2.0, 0.0]])
    assert logit_score("margin", logits).tolist() == [2, 0]


def weighed(train, inside, some):
    """knn and entropy of `inside`, each brought to one scale by the training images `some`, added."""
    parts = []
    for name in ("knn", "entropy"):
        score = fitted(name, train)
        known = score(train.logits[some], train.features[some])
        parts.append((score(*inside) - known.mean()) / known.std())
    return sum(parts)


def test_knn_entropy_weighs_both_alike():
    train, inside, _ = toy()
    torch.testing.assert_close(scores.knn_entropy(train, OPTIONS)(*inside), weighed(train, inside, torch.arange(400)))


def test_knn_entropy_takes_its_scale_from_a_fair_sample(monkeypatch):
    """Training images as a prepared set has them, sorted by class: the first ones are all of one class."""
    train, inside, _ = toy()
    train = FitData(*(part[train.labels.argsort(stable=True)] for part in train))
    monkeypatch.setattr(scores, "SAMPLE", 60)
    some = images.sample(train.labels, 60)
    assert train.labels[some].bincount().tolist() == [15] * 4
    found = scores.knn_entropy(train, OPTIONS)(*inside)
    torch.testing.assert_close(found, weighed(train, inside, some))
    assert not torch.allclose(found, weighed(train, inside, torch.arange(60)))


def test_options_are_the_parameters_of_their_names():
    knobs = params.load(ROOT / "params.yaml", overrides={"ood_eval.neighbours": 7, "ood_eval.vim_share": 0.25})
    options = Options.from_params(knobs)
    assert (options.neighbours, options.vim_share, options.guides) == (7, 0.25, knobs.ood_eval.guides)


def test_a_guide_needs_enough_training_images():
    with pytest.raises(UserError, match=r"ood_eval\.guides = 21.*1 to 20"):
        fitted("nnguide", toy(20)[0], replace(OPTIONS, guides=21))


@pytest.mark.parametrize("name", ["max_softmax", "entropy", "generalized_entropy"])
def test_no_ties_on_saturated_logits(name):
    logits = torch.zeros(1000, 10)
    logits[:, 3] = torch.linspace(20, 300, 1000)
    in_float32 = (logits / 0.5).softmax(1).amax(1)
    assert len(in_float32.unique()) == 1  # the fault: every image gets exactly 1.0
    confidences = logit_score(name, logits)
    assert (confidences.diff() > 0).all()


@pytest.mark.parametrize("name", ["max_softmax", "energy", "entropy", "generalized_entropy", "max_logit"])
def test_logits_of_any_size_give_finite_confidences(name):
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [0.0, 0.0], [1e-30, 0.0], [3e38, -3e38]])
    assert logit_score(name, logits).isfinite().all()


def test_softmax_scores_ignore_what_all_logits_share():
    logits = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("max_softmax", "entropy", "generalized_entropy"):
        torch.testing.assert_close(logit_score(name, logits + 100), logit_score(name, logits))


def test_knn_in_blocks_equals_all_distances(monkeypatch):
    train, inside, _ = toy()
    whole = fitted("knn", train)(*inside)
    monkeypatch.setattr(scores, "QUERIES", 3)
    monkeypatch.setattr(scores, "SEARCHED", 70)
    torch.testing.assert_close(fitted("knn", train)(*inside), whole)
    unit = [torch.nn.functional.normalize(part.double()) for part in (inside[1], train.features)]
    torch.testing.assert_close(whole, -torch.cdist(*unit).kthvalue(5).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("part", [1, 24 * 7, 24 * 399])  # an image, seven of them, all but one
def test_training_images_in_blocks_are_what_they_are_at_once(monkeypatch, name, part):
    """A dead feature and two alike among them, where least squares has many solutions."""
    train, (logits, features), _ = toy()
    train, features = train._replace(features=alike(train.features)), alike(features).requires_grad_()
    options = replace(OPTIONS, vim_share=0.5)  # with more of the space the residual is what rounding leaves
    whole = fitted(name, train, options)(logits, features)
    monkeypatch.setattr(scores, "PART", part)
    found = fitted(name, train, options)(logits, features)
    torch.testing.assert_close(found, whole, rtol=1e-6 if name == "nnguide" else 1e-11, atol=1e-12)
    if found.requires_grad:
        one, other = (torch.autograd.grad(each.sum(), features)[0] for each in (found, whole))
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def alike(features):
    """(N, 6) features, of which one says nothing and two say the same."""
    return torch.cat([features[:, :4], features[:, :1], torch.zeros(len(features), 1)], 1)


def test_knn_needs_enough_training_images():
    train, _, _ = toy(20)
    fitted("knn", train, replace(OPTIONS, neighbours=20))
    with pytest.raises(UserError, match=r"ood_eval\.neighbours = 21.*1 to 20"):
        fitted("knn", train, replace(OPTIONS, neighbours=21))


@pytest.mark.parametrize("name", ["mahalanobis", "relative_mahalanobis"])
def test_mahalanobis_survives_dead_and_repeated_features(name):
    train, inside, outside = toy()
    plain = fitted(name, train)(*inside)

    def pad(features):
        return torch.cat([features, torch.zeros(len(features), 2), features[:, :1]], 1)

    padded = fitted(name, train._replace(features=pad(train.features)))
    torch.testing.assert_close(padded(inside[0], pad(inside[1])), plain)
    assert padded(outside[0], pad(outside[1])).isfinite().all()


def test_mahalanobis_is_the_formula():
    train, inside, _ = toy()
    features, labels = train.features.double().numpy(), train.labels.numpy()
    means = np.stack([features[labels == c].mean(0) for c in range(4)])
    precision = np.linalg.inv(np.cov((features - means[labels]).T, bias=True))
    gaps = inside[1].double().numpy()[:, None] - means
    expected = -np.einsum("ncd,de,nce->nc", gaps, precision, gaps).min(1)
    np.testing.assert_allclose(fitted("mahalanobis", train)(*inside), expected)
