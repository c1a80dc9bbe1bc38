"""The training loop: what it learns, what it asks of a regime and does with its verdicts, and what it does not know."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from scripts.deps import closure
from stages.common import distributed, evaluation, training
from stages.common.adversary import METHODS
from stages.common.errors import UserError
from stages.common.models import architectures
from stages.common.training import loop
from stages.common.training.optimizer import Muon
from tests.repository import ROOT
from tests.small import RECIPE, SETTINGS, against, fit, new_model, parts, same


class Scripted(training.Plain):
    """Verdicts by epoch: kept, undone or (neither) passed over. Notes all that it is shown."""

    def __init__(self, model, verdicts):
        self.model, self.verdicts = model, dict(enumerate(verdicts, start=1))
        self.steps, self.batches, self.weights, self.earlier = [], [], {}, []

    def objective(self, learner, images, labels, progress):
        assert labels.dtype == torch.int64 and images.dtype == torch.float32 and self.model.training
        self.steps.append((progress.done, progress.last_epoch, len(progress.rows)))
        self.batches.append(images.shape)
        return super().objective(learner, images, labels, progress)

    def after_epoch(self, row, progress):
        assert not self.model.training
        self.weights[row["epoch"]] = copy(self.model)
        self.earlier.append([earlier["epoch"] for earlier in progress.rows])
        verdict = self.verdicts[row["epoch"]]
        return training.Verdict({"judged": verdict}, keep=verdict == "keep", undo=verdict == "undo", remark="seen")


def copy(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def judged(digits, folder, verdicts, recipe=RECIPE, log=lambda regime: None):
    """A training whose epochs get these verdicts: the model, the result and the regime."""
    regimes = []

    def opponent(model, val_set):
        regimes.append(Scripted(model, verdicts))
        return regimes[0]

    recipe = replace(recipe, epochs=len(verdicts))
    model, result = fit(digits, folder, recipe, opponent, log=lambda rows: log(regimes[0]))
    return model, result, regimes[0]


def test_a_plain_training_learns_and_keeps_its_last_epoch(digits, tmp_path):
    model, result = fit(digits, tmp_path)
    assert [row["epoch"] for row in result.rows] == [1, 2, 3, 4] and result.epoch == 4
    last = result.rows[-1]
    assert last["val_accuracy"] == evaluation.accuracy(model, parts(digits)[1]) > 0.85
    assert last["loss"] < result.rows[0]["loss"] and last["learning_rate"] == 0 and not model.training
    assert set(last) == {"epoch", "loss", "train_accuracy", "val_accuracy", "learning_rate"}


def test_a_regime_that_changes_nothing_is_no_regime(digits, tmp_path):
    model, _, _ = judged(digits, tmp_path, ["keep"] * 2)
    assert same(model, fit(digits, tmp_path, replace(RECIPE, epochs=2))[0])


def test_a_regime_sees_every_batch_and_where_the_training_is(digits, tmp_path):
    recipe = replace(RECIPE, early_size=10)
    _, result, regime = judged(digits, tmp_path, ["keep"] * 4, recipe)
    steps = 1200 // 64
    assert [done for done, _, _ in regime.steps] == pytest.approx([i / (4 * steps) for i in range(4 * steps)])
    assert [last for _, last, _ in regime.steps] == [False] * 3 * steps + [True] * steps
    assert [rows for _, _, rows in regime.steps] == [epoch for epoch in range(4) for _ in range(steps)]
    sizes = [10] * 2 * steps + [8] * 2 * steps  # the first half of the epochs sees `early_size`
    assert regime.batches == [(64, 1, size, size) for size in sizes]
    assert regime.earlier == [[], [1], [1, 2], [1, 2, 3]]
    assert [row["judged"] for row in result.rows] == ["keep"] * 4


@pytest.mark.parametrize(
    ("verdicts", "epoch"),
    [
        (["keep", "keep", "pass"], 2),
        (["keep", "undo", "pass"], 1),
        (["undo", "keep", "undo"], 2),
        (["pass", "pass"], 2),  # none was kept: the last one stays
    ],
)
def test_the_weights_of_the_last_epoch_kept_are_the_result(digits, tmp_path, verdicts, epoch):
    model, result, regime = judged(digits, tmp_path, verdicts)
    assert result.epoch == epoch and len(result.rows) == len(verdicts)
    assert [i for i, weights in regime.weights.items() if equal(weights, model.state_dict())] == [epoch]


def test_an_undone_epoch_leaves_neither_weights_nor_momentum(digits, tmp_path, monkeypatch):
    """Only where there is an epoch to go back to: the first one's weights stay, whatever the verdict."""
    optimizers, seen = [], []
    new_optimizers = loop.new_optimizers
    monkeypatch.setattr(loop, "new_optimizers", lambda *given: optimizers.extend(new_optimizers(*given)) or optimizers)

    def look(regime):
        weights = copy(regime.model)
        same_as = [epoch for epoch, earlier in regime.weights.items() if equal(weights, earlier)]
        seen.append((same_as, [len(optimizer.state) > 0 for optimizer in optimizers]))

    judged(digits, tmp_path, ["undo", "keep", "undo", "pass"], log=look)
    assert [type(optimizer) for optimizer in optimizers] == [torch.optim.SGD, Muon]
    there, gone = [True, True], [False, False]
    assert seen == [([1], there), ([2], there), ([2], gone), ([4], there)]


def test_the_loop_knows_no_attack():
    """Neither by name nor through what it imports: what trains no robust model is not stale when an attack changes."""
    attacking = {f"stages/common/{name}.py" for name in ("attacks", "adversary", "robustness")}
    assert attacking <= set(closure(ROOT / "stages/train_robust.py", ROOT))
    for script in (ROOT / "stages/train_standard.py", ROOT / "stages/common/training/__init__.py"):
        needed = closure(script, ROOT)
        assert "stages/common/models" in needed  # the imports are followed
        assert not attacking & set(needed) and not {"stages", "stages/common"} & set(needed)


def test_a_rate_too_high_is_named(digits, tmp_path):
    with pytest.raises(UserError, match="learning_rate"):
        fit(digits, tmp_path, replace(RECIPE, learning_rate=1e30))


def test_a_set_below_a_batch_that_ranks_cannot_share_is_refused(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "count", lambda: 7)
    with pytest.raises(UserError, match=r"1200 training images are one batch, .* 7 processes .* a multiple of 7 below"):
        fit(digits, tmp_path, replace(RECIPE, batch_size=1400))


def test_the_table_grows_as_epochs_end(digits, tmp_path):
    epochs = []
    fit(digits, tmp_path, replace(RECIPE, epochs=3), log=lambda rows: epochs.append([row["epoch"] for row in rows]))
    assert epochs == [[1], [1, 2], [1, 2, 3]]


def test_an_epoch_s_line_ends_with_the_regime_s_remark(digits, tmp_path, capsys):
    judged(digits, tmp_path, ["keep", "undo"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["test: epoch 1/2", "test: epoch 2/2"]
    assert all(line.endswith("  seen") for line in lines)


def test_what_is_descended_and_what_is_counted_are_the_regime_s(digits, tmp_path):
    """A loss of its own, whose logits say the right class of every image: so the table."""

    class Own(training.Plain):
        def objective(self, learner, images, labels, progress):
            logits = learner.forward(images)
            return training.Objective(F.one_hot(labels, 10).float(), 0 * learner.loss(logits, labels) + 3)

    model, result = fit(digits, tmp_path, replace(RECIPE, epochs=2, weight_decay=0.0), lambda model, val_set: Own())
    assert [(row["loss"], row["train_accuracy"]) for row in result.rows] == [(3.0, 1.0)] * 2
    before = new_model(digits)
    assert torch.equal(model.linear.weight, before.linear.weight)  # without a slope SGD stays where it is


def test_the_loss_that_a_regime_is_handed_is_smoothed(digits, tmp_path):
    seen = []

    class Look(training.Plain):
        def objective(self, learner, images, labels, progress):
            found = super().objective(learner, images, labels, progress)
            seen.append((found, F.cross_entropy(found.logits, labels, label_smoothing=RECIPE.label_smoothing)))
            return found

    fit(digits, tmp_path, replace(RECIPE, epochs=1), lambda model, val_set: Look())
    assert seen and all(torch.equal(found.loss, expected) for found, expected in seen)


def test_muon_s_rate_makes_another_training_and_learns_as_well(digits, tmp_path):
    results = {rate: fit(digits, tmp_path, replace(RECIPE, filter_rate=rate)) for rate in (None, 0.1, 0.3)}
    assert all(result.rows[-1]["val_accuracy"] > 0.85 for _, result in results.values())
    models = [model for model, _ in results.values()]
    assert not any(same(one, other) for one, other in pairwise(models))


@pytest.mark.parametrize("attack", METHODS)
def test_bfloat16_is_of_the_training_step_alone(digits, tmp_path, monkeypatch, attack):
    """Of its attack too, which looks for no more than a sign. Weights, momenta and validation stay float32."""
    seen = {"step": set(), "attack": set(), "evaluation": set()}
    judging, forward, optimizers = [], architectures.WhitenedCNN.forward, []
    new_optimizers = loop.new_optimizers
    monkeypatch.setattr(loop, "new_optimizers", lambda *given: optimizers.extend(new_optimizers(*given)) or optimizers)

    def watched(self, images):
        logits = forward(self, images)
        seen["step" if self.training else "evaluation" if judging else "attack"].add(logits.dtype)
        return logits

    def opponent(model, val_set):
        regime = against(replace(SETTINGS, attack=attack, ramp=0.0))(model, val_set)
        objective = regime.objective

        def attacking(learner, images, labels, progress):
            assert images.dtype == torch.float32
            judging.clear()
            found = objective(learner, images, labels, progress)
            judging.append(True)
            assert found.logits.dtype == found.loss.dtype == torch.float32
            return found

        regime.objective = attacking
        return regime

    monkeypatch.setattr(architectures.WhitenedCNN, "forward", watched)
    model, result = fit(digits, tmp_path, replace(RECIPE, bfloat16=True, epochs=1), opponent)
    assert seen == {"step": {torch.bfloat16}, "attack": {torch.bfloat16}, "evaluation": {torch.float32}}
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    momenta = [value for each in optimizers for state in each.state.values() for value in state.values()]
    assert {value.dtype for value in momenta if isinstance(value, torch.Tensor)} == {torch.float32}
    assert result.rows[-1]["val_accuracy"] == evaluation.accuracy(model, parts(digits)[1])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_learner_answers_in_float32(digits, tmp_path, bfloat16):
    """In bfloat16's steps where the recipe says so."""
    seen = []

    class Look(training.Plain):
        def objective(self, learner, images, labels, progress):
            found = super().objective(learner, images, labels, progress)
            seen.append(found.logits.detach())
            return found

    fit(digits, tmp_path, replace(RECIPE, epochs=1, bfloat16=bfloat16), lambda model, val_set: Look())
    assert seen and {logits.dtype for logits in seen} == {torch.float32}
    rounded = [torch.equal(logits, logits.to(torch.bfloat16).float()) for logits in seen]
    assert all(rounded) if bfloat16 else not any(rounded)
