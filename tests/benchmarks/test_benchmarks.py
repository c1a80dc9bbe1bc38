"""The benchmarks run, and both sides of each compute the same thing. Times are never asserted."""

import sys
from dataclasses import replace
from operator import attrgetter

import pandas as pd
import pytest
import torch

from benchmarks import (
    audit,
    autoattack,
    common,
    devices,
    frontier,
    large,
    ood,
    precision,
    ranks,
    scaling,
    sweep,
    time_to_accuracy,
    training,
    variants,
)
from stages.common import artifacts, attacks, device, evaluation, images, models, params
from stages.common.errors import UserError
from tests.small import fit


@pytest.fixture
def few_digits(digits, monkeypatch):
    """300 digits in place of each prepared set."""
    monkeypatch.setattr(images, "read", lambda name: common.take(digits, 300))


def test_sweep_predicts_what_its_peers_predict():
    rows = sweep.measure(quick=True)
    assert rows.keys() == {"torchattacks", "foolbox"}
    assert all(row["equal"] == 1 and row["ratio"] > 0 for row in rows.values())


def test_the_audit_s_attacks_and_torchattacks_leave_as_much(digits, tmp_path):
    """FGSM is the same to the image; the others start at random, and PGD counts what is broken on the way."""
    few = digits.take(torch.arange(1600, 1660))
    model = fit(digits, tmp_path)[0].eval()
    subject = replace(audit.new_subject(quick=True), model=model, image_set=few, eps=0.1, pgd_steps=10)
    ours, theirs = audit.by_the_audit(subject), audit.by_torchattacks(subject)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(right, theirs[name]) for name, right in ours.items() if name.startswith(("clean", "fgsm")))
    for left in (ours, theirs):
        assert left["clean"].sum() > left["restarted"].sum() > left["strongest"].sum() > 0
        assert (left["strongest"] <= left["restarted"]).all()
    assert (ours["strongest"] == theirs["strongest"]).double().mean() >= 0.9


def test_the_audit_reports_both_sides():
    subject = audit.new_subject(quick=True)
    found = audit.measure(quick=True)
    assert found["ratio"] > 0 and found["images"] == len(subject.image_set)
    assert abs(found["ours_left"] - found["peer_left"]) <= 1 - found["equal"] + 1e-9


def test_both_precisions_are_judged_by_the_float32_model():
    rows = precision.compared(quick=True)
    assert len(rows) == 4 and all(row["ratio"] > 0 for row in rows)
    assert all(abs(row["float32"] - row["bfloat16"]) <= row["differ"] / row["images"] for row in rows)
    assert precision.table(rows).count("\n") == 5


def test_a_model_in_bfloat16_stays_in_it_inside_an_attack():
    net, x = common.small_net(), images.to_float(common.digits(8).images)
    exact = attacks.gradient(lambda x: net(x).amax(1), x)
    rough = attacks.gradient(lambda x: precision.InBfloat16(net)(x).amax(1), x)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert torch.cosine_similarity(rough.flatten(1), exact.flatten(1)).min() > 0.98


def test_training_reports_both_sides():
    found = training.measure(quick=True)
    assert all(value > 0 for value in found.values())
    assert found["ratio"] == found["ours_images_s"] / found["peer_images_s"]


@pytest.mark.parametrize(("asked", "kind"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_training_is_measured_by_a_matrix_product_of_its_own_precision(monkeypatch, asked, kind):
    knobs = params.load(overrides={"precision": asked})
    monkeypatch.setattr(params, "load", lambda: knobs)
    assert training.precision(quick=True) == kind


def test_both_training_sides_see_the_same_images():
    train, _ = training.data(quick=True)
    pictures = training.Pictures(train, training.augmenting(train.images.shape[-1], translate=0))
    torch.manual_seed(0)
    for index in range(20):
        seen, label = pictures[index]
        whole = images.to_float(train.images[index : index + 1])[0]
        assert label == train.labels[index]
        assert torch.allclose(seen, whole) or torch.allclose(seen, whole.flip(2))


def test_ood_scores_rank_as_pytorch_ood_s():
    row = ood.measure(quick=True)
    assert row["lowest_rank_correlation"] > 0.999 and row["ratio"] > 0


def test_large_images_are_evaluated_attacked_and_trained_on_by_both_nets():
    found = large.measure(quick=True)
    assert len(found) == 2 and all(len(row) == 3 and min(row.values()) > 0 for row in found.values())
    assert large.table(found).count("\n") == 3


def test_a_device_trains_and_attacks_both_nets():
    rows = pd.DataFrame(devices.measured(quick=True))
    assert list(rows.net) == ["whitened_cnn", "resnet18"] and (rows[["standard", "robust", "pgd"]] > 0).all(axis=None)
    assert devices.table(rows).count("\n") == 3


def test_ranks_and_one_process_do_the_same_work():
    found = {str(processes): ranks.measured(processes, 1, quick=True) for processes in (1, 2)}
    assert found["1"].keys() == found["2"].keys() and min(min(row.values()) for row in found.values()) > 0
    assert ranks.table(found).count("\n") == 3


def test_both_recipes_reach_the_goal():
    row = time_to_accuracy.measure(quick=True)
    assert min(row["ours_accuracy"], row["study_accuracy"]) >= time_to_accuracy.GOAL and row["ratio"] > 0


def test_autoattack_breaks_what_no_gradient_protects(digits):
    """An untrained net's few right answers fall to a budget of 0.3, and none does to a budget of almost nothing."""
    torch.manual_seed(1)
    # Three channels: with one, channels_last and contiguous are the same
    digits = images.ImageSet(digits.images.repeat(1, 3, 1, 1), digits.labels, digits.classes)
    model = models.build("whitened_cnn", channels=3, classes=digits.classes, widths=[8])
    model.adapt(images.to_float(digits.images))
    model.eval()
    right = evaluation.predictions(model, digits.images) == digits.labels
    few = digits.take(right.nonzero().squeeze(1)[:6])
    assert autoattack.autoattack(model, few, 0.3, 0) == 0
    assert autoattack.restarted(model, few, 0.3, 5, 2, 0) == 0
    assert autoattack.restarted(model, few, 1e-9, 2, 2, 0) == 1
    assert not autoattack.audit(model, few, 0.3, params.load()).strongest.any()


def test_autoattack_says_beforehand_that_it_needs_four_classes(tmp_path, monkeypatch):
    model = models.build("simple_cnn", channels=3, classes=["cat", "dog"])
    artifacts.write_checkpoint(tmp_path / "robust.pt", models.checkpoint(model))
    monkeypatch.setattr(images, "read", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["autoattack", "--checkpoint", str(tmp_path / "robust.pt")])
    with pytest.raises(UserError, match="knows 2 classes"):
        autoattack.main()


def test_a_variant_is_trained_and_its_row_says_so(few_digits):
    row = variants.measure("widths 32/128/256", 0.1, 200, 1, 0)
    other = variants.measure("plain FGSM", 0.1, 200, 1, 1)
    assert all(0 <= found[figure] <= 1 for found in (row, other) for figure in ("clean", "fgsm", "pgd", "strongest"))
    fast = other | {"strongest": 0.4, "seed": 2, "overfitted": 3, "minutes": 0.5, "processor": "fast"}
    rows = pd.DataFrame([row | {"strongest": 0.1}, other | {"strongest": 0.2, "minutes": 7.0}, fast])
    head, _, best, worst = variants.table(rows).splitlines()
    assert head.endswith(f"minutes, {row['processor']} |") and best.endswith("| 7.0 |")
    assert best.startswith("| plain FGSM | 0.1 | 1 |") and "| 0.300 (0.200 to 0.400) | 1 of 2 |" in best
    assert "widths 32/128/256" in worst and "| 0 of 1 |" in worst


@pytest.mark.parametrize("variant", ["ReLU for SiLU", "weights averaged"])
def test_a_variant_changes_what_it_says(few_digits, variant):
    plain, changed = (variants.measure(name, 0.1, 300, 3, 0) for name in ("default", variant))
    figures = ("clean", "fgsm", "pgd", "strongest")
    assert [plain[name] for name in figures] != [changed[name] for name in figures]


@pytest.mark.parametrize("name", [name for name, variant in variants.VARIANTS.items() if variant.changes])
def test_a_variant_changes_parameters_that_there_are(name):
    """And to values that they do not have already."""
    changes = variants.VARIANTS[name].changes
    plain, changed = params.load(), params.load(overrides=changes)
    for key, value in changes.items():
        assert attrgetter(key)(changed) == value != attrgetter(key)(plain)


def test_the_frontier_s_points_are_trained_and_drawn(few_digits):
    rows = [frontier.measure(1), frontier.measure(2, [8, 8])]
    assert [row["epochs"] for row in rows] == [1, 2] and rows[1]["widths"] == "8/8"
    assert all(0 < row["accuracy"] <= 1 and row["minutes"] > 0 for row in rows)
    (axes,) = frontier.draw(pd.DataFrame(rows)).axes
    assert {line.get_label() for line in axes.lines} == {f"{row['widths']}, {row['processor']}" for row in rows}


def test_a_processor_without_bfloat16_is_another_one(monkeypatch):
    """Rows of tables go by its name, and one name is sold for both."""
    names = []
    for has_it in (True, False):
        monkeypatch.setattr(device, "bfloat16", lambda precision, where, has_it=has_it: has_it)
        names.append(common.processor())
    assert names[1] == f"{names[0]} without bfloat16"


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- b -->\nafter\n")
    common.put_table(page, "<!-- a -->", "<!-- b -->", "new")
    assert page.read_text() == "before\n<!-- a -->\nnew\n<!-- b -->\nafter\n"
    with pytest.raises(UserError, match="lacks the lines"):
        common.put_table(page, "<!-- c -->", "<!-- b -->", "new")


def test_a_row_replaces_the_one_of_its_key_and_no_other(tmp_path):
    for row in ({"a": 2, "b": 0.5, "c": 1}, {"a": 1, "b": 0.5, "c": 2}, {"a": 2, "b": 0.5, "c": 3}):
        common.put_row(tmp_path / "rows.csv", row, ["a", "b"], places=2)
    assert pd.read_csv(tmp_path / "rows.csv").values.tolist() == [[1, 0.5, 2], [2, 0.5, 3]]


def test_growth_is_told_relative_to_the_first(monkeypatch, capsys):
    ticks = iter([0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12])  # one second and three, in turn
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(ticks))
    shown = scaling.row("images", {"10": lambda: None, "30": lambda: None})
    assert shown == "| images | 10: 1.0 s (1.00); 30: 3.0 s (3.00) |" and shown in capsys.readouterr().out


def test_the_sides_of_growth_run(digits):
    few = common.take(digits, 64)
    model = models.build("whitened_cnn", channels=1, classes=digits.classes, widths=[8]).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scaling.sweep(model, few, 3)()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    scaling.epoch(few, [8])()


def test_what_is_held_out_is_a_fair_sample_and_no_part_of_the_rest(digits):
    rest, held_out = common.hold_out(digits, 300)
    assert (len(rest), len(held_out)) == (1497, 300)
    assert held_out.labels.bincount().tolist() == digits.labels[images.sample(digits.labels, 300)].bincount().tolist()
    both = torch.cat([rest.images, held_out.images]).flatten(1)
    assert both.unique(dim=0).shape == digits.images.flatten(1).unique(dim=0).shape


def test_a_budget_of_the_command_line_may_be_a_fraction():
    assert [common.budget(text) for text in ("8/255", "0.05", "0")] == [8 / 255, 0.05, 0.0]
    for text in ("8/0", "x", "-0.1", "12.75"):
        with pytest.raises(ValueError):
            common.budget(text)
