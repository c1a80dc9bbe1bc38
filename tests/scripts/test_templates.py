"""DVC's plot templates: the committed ones are what scripts/templates.py writes, and each draws its table."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import vl_convert

from scripts import templates

ROOT = Path(__file__).parents[2]
FILES = sorted(templates.FOLDER.glob("*.json"))
SECOND = {
    "fgsm_pgd": "fgsm_sweep",
    "targeted_accuracy": "targeted_sweep",
    "ood_attack_max_logit": "ood_attack",
    "confusion_clean": "confusion",
}
SEEDS = [
    {"eps": eps, "model": model, "attack": attack, "seeds": "3", "mean": "0.5", "low": "0.4", "high": "0.6"}
    for model in ("standard", "robust")
    for attack in ("FGSM", "PGD")
    for eps in ("0.0", "0.1")
]


def table(name: str) -> list[dict[str, str]]:
    """The rows that DVC gives the template, of two revisions."""
    rows = SEEDS
    if name != "seeds":
        with (ROOT / f"plots/{SECOND.get(name, name)}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    return [row | {"rev": revision} for revision in ("workspace", "HEAD") for row in rows]


def parts(value) -> list[dict]:
    """Every JSON object within `value`."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [value] * isinstance(value, dict) + [found for part in inside for found in parts(part)]


def strings(value) -> list[str]:
    return [value] if isinstance(value, str) else value if isinstance(value, list) else []


def test_the_committed_templates_are_what_is_written():
    assert templates.stale(templates.FOLDER) == {}
    assert {file.stem for file in FILES} == set(templates.TEMPLATES)  # each has its description


def test_check_names_what_is_stale(tmp_path, monkeypatch):
    monkeypatch.setattr(templates, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["templates"])
    templates.main()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        file.name: file.read_bytes() for file in FILES
    }
    (tmp_path / "seeds.json").unlink()
    (tmp_path / "ood_scores.json").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["templates", "--check"])
    with pytest.raises(SystemExit, match=r"ood_scores.json, seeds.json;"):
        templates.main()


def test_check_passes_on_the_committed_ones():
    subprocess.run([sys.executable, "-m", "scripts.templates", "--check"], cwd=ROOT, check=True)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_template_draws_its_table(file):
    spec = json.loads(file.read_text(encoding="utf-8"))
    assert spec["data"] == {"values": "<DVC_METRIC_DATA>"} and spec["title"]["text"]
    rows = table(file.stem)
    svg = vl_convert.vegalite_to_svg(spec | {"data": {"values": rows}})
    assert spec["title"]["text"].replace("&", "&amp;") in svg and "NaN" not in svg
    assert "undefined" not in svg and "null" not in svg


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_template_s_fields_are_columns_of_its_table(file):
    """Vega-Lite draws a missing field as nothing, without an error."""
    found = parts(json.loads(file.read_text(encoding="utf-8")))
    made = {name for part in found for name in strings(part.get("as"))}
    inline = {key for part in found if isinstance(part.get("values"), list) for row in part["values"] for key in row}
    columns = set(table(file.stem)[0])
    used = {part["field"] for part in found if "field" in part} | {c for part in found for c in part.get("fold", [])}
    assert used <= columns | made | inline


def drawn(name: str, rows: list[dict[str, str]]) -> str:
    return vl_convert.vegalite_to_svg(templates.TEMPLATES[name] | {"data": {"values": rows}})


def test_of_sixteen_curves_the_best_five_are_named_and_the_rest_is_grey():
    areas = {f"s{number:02}": 0.5 + number / 100 for number in range(16)} | {"s14": 0.65}  # two of the best are equal
    rows = [
        {"model": "robust", "score": score, "fpr": at, "tpr": at, "area": f"{area:.3f}", "rev": "workspace"}
        for score, area in areas.items()
        for at in ("0.0", "0.5", "1.0")
    ]
    svg = drawn("roc_robust", rows)
    assert re.findall(r">(s\d\d .*?)<", svg) == [f"s{n}  {areas[f's{n}']:.3f}" for n in range(11, 16)]
    assert ">grey: 11 more, 0.500 to 0.600<" in svg
    assert svg.count(f'stroke="{templates.PALE}"') >= 11
    few = drawn("roc_robust", [row for row in rows if row["score"] > "s12"])
    assert "grey:" not in few and len(re.findall(r">s1\d ", few)) == 3


def test_intervals_are_drawn_as_bands_and_whiskers():
    for name, mark in {"corruptions": "area", "certified": "area", "ood_attack": "area", "classes": "rule"}.items():
        assert f'class="mark-{mark} role-mark' in drawn(name, table(name)), name


def test_the_verdicts_of_the_audit_have_their_colours():
    shown = json.loads((templates.FOLDER / "audit_verdicts.json").read_text())
    (scale,) = [part for part in parts(shown) if part.get("domain")]
    assert scale["domain"] == ["pass", "warn", "FAIL", "n/a"] and scale["range"][-1] == "#999999"
    row = {"model": "robust", "check": "pgd_converged", "verdict": "n/a", "seen": "", "meaning": "", "rev": "workspace"}
    assert ">n/a</text>" in vl_convert.vegalite_to_svg(shown | {"data": {"values": [row]}})
