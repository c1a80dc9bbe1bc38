"""The training loop: what it learns, what it asks of a regime and does with its verdicts, and what it does not know."""

from dataclasses import replace

import pytest
import torch

from scripts.deps import closure
from stages.common import attacks, evaluation, training
from stages.common.errors import UserError
from stages.common.models import architectures
from stages.common.training import loop
from tests.repository import ROOT
from tests.small import RECIPE, against, fit, parts, same


class Scripted(training.Plain):
    """Verdicts by epoch: kept, undone or (neither) passed over. Notes all that it is shown."""

    def __init__(self, model, verdicts):
        self.model, self.verdicts = model, dict(enumerate(verdicts, start=1))
        self.steps, self.batches, self.weights, self.earlier = [], [], {}, []

    def perturb(self, images, labels, progress):
        assert labels.dtype == torch.int64 and images.dtype == torch.float32 and self.model.training
        self.steps.append((progress.done, progress.last_epoch, len(progress.rows)))
        self.batches.append(images.shape)
        return images

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
    new_optimizer = loop.new_optimizer
    monkeypatch.setattr(loop, "new_optimizer", lambda *given: optimizers.append(new_optimizer(*given)) or optimizers[0])

    def look(regime):
        weights = copy(regime.model)
        same_as = [epoch for epoch, earlier in regime.weights.items() if equal(weights, earlier)]
        seen.append((same_as, len(optimizers[0].state) > 0))

    judged(digits, tmp_path, ["undo", "keep", "undo", "pass"], log=look)
    assert seen == [([1], True), ([2], True), ([2], False), ([4], True)]


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


def test_the_table_grows_as_epochs_end(digits, tmp_path):
    epochs = []
    fit(digits, tmp_path, replace(RECIPE, epochs=3), log=lambda rows: epochs.append([row["epoch"] for row in rows]))
    assert epochs == [[1], [1, 2], [1, 2, 3]]


def test_an_epoch_s_line_ends_with_the_regime_s_remark(digits, tmp_path, capsys):
    judged(digits, tmp_path, ["keep", "undo"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["test: epoch 1/2", "test: epoch 2/2"]
    assert all(line.endswith("  seen") for line in lines)


def test_bfloat16_is_of_the_training_step_alone(digits, tmp_path, monkeypatch):
    """Weights, attacks and validation stay float32: half precision would round small input gradients away."""
    seen = {"attack": set(), "step": set(), "evaluation": set()}
    gradient, forward = attacks.input_gradient, architectures.WhitenedCNN.forward

    def watched_gradient(model, images, labels):
        found = gradient(model, images, labels)
        seen["attack"].add((torch.is_autocast_enabled("cpu"), found.dtype))
        return found

    def watched_forward(self, images):
        logits = forward(self, images)
        seen["step" if self.training else "evaluation"].add(logits.dtype)
        return logits

    monkeypatch.setattr(attacks, "input_gradient", watched_gradient)
    monkeypatch.setattr(architectures.WhitenedCNN, "forward", watched_forward)
    model, _ = fit(digits, tmp_path, replace(RECIPE, bfloat16=True, epochs=1), against())
    assert seen == {"attack": {(False, torch.float32)}, "step": {torch.bfloat16}, "evaluation": {torch.float32}}
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
