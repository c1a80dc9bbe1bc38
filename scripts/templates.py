"""DVC's plot templates, the Vega-Lite of .dvc/plots, from one short description each.

    python -m scripts.templates             # write them all
    python -m scripts.templates --check     # write nothing; exit with 1 and name those that are stale

A template has the name of the table that it draws, plots/NAME.csv; a second picture of a table has a name of its own.
It holds the fields, titles and marks, so a plot in dvc.yaml names its template and nothing else. DVC puts the table's
rows in place of <DVC_METRIC_DATA>: every column, as text, and `rev`, the revision that the row is from.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stages.common.artifacts import MODELS

Spec = dict[str, Any]  # Vega-Lite, or a part of it
Specs = Sequence[Spec]

FOLDER = Path(__file__).parents[1] / ".dvc/plots"

# Okabe and Ito's colours, which every kind of colour vision tells apart.
BLUE, SKY, GREEN, ORANGE, VERMILION, GREY = "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#999999"
PURPLE, PALE = "#CC79A7", "#CCCCCC"


def word(field: str, title: str | None = None, **more: Any) -> Spec:
    return {"field": field, "type": "nominal", "title": title or field, **more}


def number(field: str, title: str | None = None, **more: Any) -> Spec:
    return word(field, title, **more) | {"type": "quantitative"}


def share(field: str, title: str | None = None) -> Spec:
    return number(field, title, scale={"domain": [0, 1], "nice": False})


def coloured(field: str, colours: dict[str, str], title: str | None = None) -> Spec:
    """A field with a colour for each of its words, in the legend's order."""
    return word(field, title, scale={"domain": list(colours), "range": list(colours.values())})


def panel(field: str, *order: str, **more: Any) -> Spec:
    """A panel for each word of a field, with the word above it."""
    return word(field, sort=order or "ascending", **more) | {"title": None}


EXTENT = {"zero": False, "nice": False}
STROKES = {"symbolType": "stroke", "symbolStrokeWidth": 2, "symbolStrokeColor": "black"}
STROKES |= {"symbolFillColor": "transparent"}  # without it the legend of points on lines has no strokes
EPS = number("eps", "eps (pixels in [0, 1])", scale=EXTENT)
MODEL = coloured("model", {"standard": BLUE, "robust": VERMILION})
REVISION = word("rev", "revision", legend=STROKES)
ATTACK = word("attack", scale={"domain": ["FGSM", "PGD"], "range": [[1, 0], [5, 4]]}, legend=STROKES)
AUROC = share("auroc", "AUROC")
Interval = tuple[Spec, Spec]  # its two ends
INTERVAL: Interval = (number("low", "at least"), number("high", "at most"))
OF_AUROC: Interval = (number("auroc_low", "at least"), number("auroc_high", "at most"))
BEST = [BLUE, VERMILION, GREEN, ORANGE, PURPLE]  # of sixteen scores so many are told apart; more colours tell nothing
PLACE = coloured("rank", {str(place): colour for place, colour in enumerate(BEST, 1)})


def template(title: str, **body: Any) -> Spec:
    head = {"$schema": "https://vega.github.io/schema/vega-lite/v5.json", "data": {"values": "<DVC_METRIC_DATA>"}}
    return {**head, "title": {"text": title, "anchor": "middle"}, **body}


def encoded(*also: Spec, **channels: Spec) -> Spec:
    """Channels, and a tooltip that tells each of their fields, `also` and the revision."""
    format_of = {"nominal": {}, "quantitative": {"format": ".4~f"}}
    fields = {field["field"]: field for field in (*channels.values(), *also, REVISION) if "type" in field}
    told = [word(name, field["title"], type=field["type"]) | format_of[field["type"]] for name, field in fields.items()]
    return channels | {"tooltip": told}


def lines(
    title: str,
    y: Spec,
    hue: Spec,
    dash: Spec = REVISION,
    x: Spec = EPS,
    rows: Specs = (),
    also: Specs = (),
    band: Interval | None = None,
    **by: Spec,
) -> Spec:
    """A line for each colour and dash, in small panels `by` fields; a panel for each revision if the dash is not it.

    About a line that has intervals there is a `band` from one end to the other.
    """
    width, height, size = (200, 150, 30) if by else (420, 280, 35)
    panels = by or ({} if dash is REVISION else {"column": panel("rev")})
    mark = {"type": "line", "point": {"size": size}}
    if band is None:
        encoding = encoded(*also, color=hue, strokeDash=dash, x=x, y=y, **panels)
        return template(title, width=width, height=height, transform=rows, mark=mark, encoding=encoding)
    low, high = band
    numbers = [{"calculate": f"toNumber(datum.{f['field']})", "as": f["field"]} for f in (x, y, low, high)]
    ends = {"y": y | {"field": low["field"]}, "y2": {"field": high["field"]}, "detail": [dash, REVISION]}
    area = {"mark": {"type": "area", "opacity": 0.2, "clip": True}, "encoding": ends}
    line = {"mark": mark, "encoding": {"y": y, "strokeDash": dash}}
    encoding = encoded(*also, dash, y, low, high, color=hue | {"legend": {"symbolOpacity": 1}}, x=x)
    drawn = {"width": width, "height": height, "encoding": encoding, "layer": [area, line]}
    return template(title, transform=[*rows, *numbers], **faceted(drawn, panels))


def faceted(drawn: Spec, panels: Mapping[str, Spec]) -> Spec:
    """Layers in panels, which Vega-Lite draws by another door than panels of one mark."""
    if not panels:
        return drawn
    if "facet" not in panels:
        return {"facet": panels, "spec": drawn}
    field = dict(panels["facet"])
    return {"columns": field.pop("columns"), "facet": field, "spec": drawn}


def both(*columns: str) -> dict[str, str]:
    """The columns of each model, such as {}_pgd, and the model."""
    return {column.format(model): model for model in MODELS for column in columns}


def of_columns(
    title: str, words: dict[str, str], y: str = "test accuracy", hue: Spec = MODEL, dash: Spec = REVISION, **more: Any
) -> Spec:
    """A line for each of these columns, in the colour of its word."""
    rows: list[Spec] = [
        {"fold": list(words), "as": ["column", "raw"]},
        {"filter": "isValid(datum.raw) && datum.raw !== ''"},
        {"calculate": "toNumber(datum.raw)", "as": "value"},
        {"calculate": f"({json.dumps(words)})[datum.column]", "as": hue["field"]},
    ]
    if dash is ATTACK:
        rows.append({"calculate": "indexof(datum.column, '_pgd') < 0 ? 'FGSM' : 'PGD'", "as": "attack"})
    return lines(title, share("value", y), hue, dash, rows=rows, **more)


def curves(title: str, named: str, hue: Spec, side: int, x: Spec, y: Spec, area: str, align: str, under: Specs) -> Spec:
    """A curve for each word of `named`, in a square. Of many the best have a colour, and at the foot stand their names
    and the areas under them, the largest on top; the rest is grey, and only counted there.
    """
    unnamed, few = hue | {"legend": None}, len(BEST)
    best = [{"field": "best", "order": "descending"}, {"field": named, "order": "ascending"}]
    placed: list[Spec] = [
        {"calculate": "toNumber(datum.area)", "as": "area"},
        {"joinaggregate": [{"op": "max", "field": "area", "as": "best"}], "groupby": [named]},
        {"joinaggregate": [{"op": "distinct", "field": "rev", "as": "revisions"}]},
        {"window": [{"op": "dense_rank", "as": "place"}], "sort": best, "frame": [None, None]},
        {"calculate": "toString(datum.place)", "as": "rank"},
    ]
    chosen, left = {"filter": f"datum.place <= {few}"}, {"filter": f"datum.place > {few}"}
    label = f"datum.{named} + '  ' + format(datum.area, '.3f') + (datum.revisions > 1 ? '  ' + datum.rev : '')"
    names: list[Spec] = [
        chosen,
        {"aggregate": [{"op": "max", "field": "area", "as": "area"}], "groupby": [named, "rank", "revisions", "rev"]},
        {
            "window": [{"op": "row_number", "as": "row"}],
            "sort": [{"field": "area", "order": "ascending"}],
            "frame": [None, None],
        },
        {"calculate": label, "as": "label"},
        {"calculate": "0.025 + datum.row * 0.04", "as": "height"},
    ]
    others: list[Spec] = [
        left,
        {
            "aggregate": [
                {"op": "distinct", "field": named, "as": "others"},
                {"op": "min", "field": "area", "as": "least"},
                {"op": "max", "field": "area", "as": "most"},
            ]
        },
        {"filter": "datum.others > 0"},
        {"calculate": _OTHERS, "as": "label"},
    ]
    drawn = encoded(word(named), number("area", area), strokeDash=REVISION, x=x, y=y, order={"value": None})
    grey = {"color": {"value": PALE}, "detail": word(named)}
    rest = {"transform": [left], "mark": {"type": "line", "strokeWidth": 1}, "encoding": drawn | grey}
    front = {
        "transform": [chosen],
        "mark": {"type": "line", "strokeWidth": 1.8},
        "encoding": drawn | {"color": unnamed},
    }
    text = {"type": "text", "align": align, "fontSize": 10}
    at: Spec = {"x": {"datum": 0.985 if align == "right" else 0.015}, "text": {"field": "label"}}
    height = {"field": "height", "type": "quantitative"}
    told = {"transform": names, "mark": text, "encoding": at | {"y": height, "color": unnamed}}
    counted = {"transform": others, "mark": text | {"color": GREY}, "encoding": at | {"y": {"datum": 0.025}}}
    return template(title, width=side, height=side, transform=placed, layer=[rest, front, *under, told, counted])


_OTHERS = "'grey: ' + datum.others + ' more, ' + format(datum.least, '.3f') + ' to ' + format(datum.most, '.3f')"


def cells(
    title: str, x: Spec, y: Spec, hue: Spec, text: Spec, step: int, also: Specs, rows: Specs = (), **by: Spec
) -> Spec:
    """A table of coloured cells with text in them, once for each panel."""
    encoding = encoded(hue, *also, y=y | {"title": None, "sort": None}, x=x | {"title": None})
    cell = {"mark": {"type": "rect", "stroke": "white", "strokeWidth": 2}, "encoding": {"color": hue}}
    layer = [cell, {"mark": {"type": "text", "fontSize": 11}, "encoding": text}]
    size = {"width": {"step": step}, "height": {"step": 18}}
    return template(title, transform=rows, facet=by, spec={**size, "encoding": encoding, "layer": layer})


def white_on_dark(field: str, above: float) -> Spec:
    """The colour of text on viridis, whose cells are light `above` a value."""
    return {"condition": {"test": f"datum.{field} > {above}", "value": "black"}, "value": "white"}


def histograms(title: str) -> Spec:
    """The confidence in ID and in OOD images, a panel with axes of its own for each score."""
    x, y = number("confidence", scale=EXTENT), number("share", "share of the set", stack=None)
    hue = coloured("set", {"ID": BLUE, "OOD": ORANGE}, "images")
    encoding = encoded(color=hue, x=x, y=y, detail={"field": "rev"})
    area = {"mark": {"type": "area", "interpolate": "step", "opacity": 0.4}}
    outline = {"mark": {"type": "line", "interpolate": "step", "strokeWidth": 1.5}}
    layer = [area, outline | {"encoding": {"strokeDash": REVISION}}]
    spec = {"width": 170, "height": 110, "encoding": encoding, "layer": layer}
    resolve = {"scale": {"x": "independent", "y": "independent"}}
    return template(title, facet=panel("score"), columns=4, resolve=resolve, spec=spec)


def dots(
    title: str,
    x: Spec,
    y: Spec,
    hue: Spec,
    rows: Specs,
    also: Specs,
    whiskers: Interval | None = None,
    **by: Spec,
) -> Spec:
    """A row of dots for each word of y, each on its interval if there are `whiskers`; the shape tells the revision."""
    y = y | {"title": None, "axis": {"grid": True}}
    width, mark = 200 if by else 340, {"type": "point", "filled": True, "size": 70}
    dot = {"x": x, "shape": word("rev", "revision")}
    if whiskers is None:
        encoding = encoded(*also, y=y, color=hue, **dot, **by)
        return template(title, width=width, height={"step": 22}, transform=rows, mark=mark, encoding=encoding)
    low, high = whiskers
    numbers = [{"calculate": f"toNumber(datum.{f['field']})", "as": f["field"]} for f in (x, low, high)]
    ends = {"x": x | {"field": low["field"]}, "x2": {"field": high["field"]}}
    apart = {"field": hue["field"], "sort": MODELS}
    encoding = encoded(*also, x, low, high, y=y, yOffset=apart, color=hue)
    layer = [{"mark": {"type": "rule", "strokeWidth": 2}, "encoding": ends}, {"mark": mark, "encoding": dot}]
    drawn = {"width": width, "height": {"step": 13}, "encoding": encoding, "layer": layer}
    return template(title, transform=[*rows, *numbers], **faceted(drawn, by))


EPOCHS: Spec = {"x": number("epoch", scale=EXTENT, axis={"tickMinStep": 1}), "also": [number("loss")]}
TRAINED = {"train_accuracy": "training batches", "val_accuracy": "validation"}
ATTACKED = {"val_fgsm": "validation, FGSM", "val_pgd": "validation, PGD"}
TRAINING = dict(zip([*TRAINED.values(), *ATTACKED.values()], [GREY, BLUE, ORANGE, VERMILION], strict=True))
IMAGES = coloured("images", TRAINING, "accuracy on")
AUDITED = coloured(
    "attack", {"noise": GREY, "transfer": GREEN, "FGSM": SKY, "FGSM, worst case": BLUE, "PGD": VERMILION}
)
VERDICTS = {"pass": "#CDE9DF", "warn": "#F5DDA6", "FAIL": "#E8A27C", "n/a": GREY}  # green, orange, vermilion; but light
CHANCE: Spec = {
    "data": {"values": [{"a": 0, "b": 0}, {"a": 1, "b": 1}]},
    "mark": {"type": "line", "color": GREY, "strokeDash": [2, 3]},
    "encoding": {"x": {"field": "a", "type": "quantitative"}, "y": {"field": "b", "type": "quantitative"}},
}
FPR, TPR = share("fpr", "OOD images accepted"), share("tpr", "ID images accepted")
RECALL = share("recall", "ID images accepted (recall)")
PRECISION = share("precision", "ID among the accepted (precision)")
of_models = partial(curves, named="model", hue=MODEL, side=340)
of_scores = partial(curves, named="score", hue=PLACE, side=420)
roc: Spec = dict(x=FPR, y=TPR, area="AUROC", align="right", under=[CHANCE])
precision_recall: Spec = dict(x=RECALL, y=PRECISION, area="average precision", align="left", under=[])

ANSWERED = ("clean", "pgd", "strongest")  # under what the breakdown looks at answers

TEMPLATES: dict[str, Spec] = {
    "training_standard": of_columns("Training of the standard model", TRAINED, "accuracy", IMAGES, **EPOCHS),
    "training_robust": of_columns("Training of the robust model", TRAINED | ATTACKED, "accuracy", IMAGES, **EPOCHS),
    "fgsm_sweep": of_columns("Accuracy under FGSM", both("{}")),
    "fgsm_pgd": of_columns(
        "One step against twenty: accuracy under FGSM and under PGD", both("{}", "{}_pgd"), dash=ATTACK
    ),
    "targeted_sweep": of_columns(
        "FGSM towards one class: how often it is hit",
        both("{}_target_rate"),
        "share of other images taken for the target",
    ),
    "targeted_accuracy": of_columns("Accuracy under FGSM towards one class", both("{}_accuracy")),
    "roc_max_logit": of_models("ROC of max logit: ID against OOD", **roc),
    "pr_max_logit": of_models("Precision and recall of max logit, ID positive", **precision_recall),
    "ood_scores": cells(
        "AUROC of every score: ID against each OOD set",
        word("set", "OOD set", sort=["ood"], axis={"labelAngle": 0}),
        word("score"),
        number("auroc", "AUROC", scale={"scheme": "viridis", "domain": [0.5, 1], "clamp": True}),
        {"text": {"field": "auroc", "format": ".3f"}, "color": white_on_dark("auroc", 0.8)},
        58,
        [MODEL, *OF_AUROC, number("fpr95", "FPR95")],
        column=panel("model", *MODELS),
        row=panel("rev"),
    ),
    "ood_classes": dots(
        "AUROC of max logit against each class of the main OOD set",
        number("max_logit", "AUROC", scale={"domain": [0.5, 1], "clamp": True}, axis={"tickCount": 5}),
        word("class"),
        MODEL,
        [{"filter": "datum.set == 'ood'"}],
        [
            word("taken_for", "most often taken for"),
            number("share", "by this share"),
            number("knn", "AUROC, KNN"),
            number("deep_knn_entropy", "AUROC, deep KNN and entropy"),
        ],
    ),
    "ood_attack": lines(
        "AUROC when both sides are attacked with PGD",
        AUROC,
        MODEL,
        rows=[{"filter": "datum.attack == 'pgd' && datum.side == 'both'"}],
        band=OF_AUROC,
        facet=panel("score", columns=3),
    ),
    "ood_attack_max_logit": lines(
        "AUROC of max logit under each attack",
        AUROC,
        coloured("attack", {"noise": GREY, "fgsm": BLUE, "pgd": VERMILION}),
        rows=[{"filter": "datum.score == 'max_logit'"}],
        band=OF_AUROC,
        row=panel("model", *MODELS),
        column=panel("side", "ID down", "OOD up", "both"),
    ),
    "classes": dots(
        "Accuracy class by class",
        number("accuracy", scale={"domain": [0, 1]}),
        word("class"),
        MODEL,
        [],
        [number("images")],
        INTERVAL,
        column=panel("attack", *ANSWERED),
    ),
    "reliability": lines(
        "Is a model right as often as it says?",
        share("accuracy"),
        MODEL,
        x=share("confidence"),
        also=[number("count", "images")],
        column=panel("attack", *ANSWERED),
    ),
    "autoattack": cells(
        "AutoAttack: accuracy that each part leaves",
        word("part", sort=["clean", "apgd_ce", "apgd_t", "fab_t", "square"], axis={"labelAngle": 0}),
        word("budget"),
        number("accuracy", scale={"scheme": "viridis", "domain": [0, 1]}),
        {"text": {"field": "accuracy", "format": ".3f"}, "color": white_on_dark("accuracy", 0.6)},
        64,
        [MODEL, number("eps")],
        column=panel("model", *MODELS),
        row=panel("rev"),
    ),
    "corruptions": lines(
        "Accuracy under common corruptions",
        share("accuracy"),
        MODEL,
        x=number("severity", scale=EXTENT, axis={"tickMinStep": 1}),
        band=INTERVAL,
        facet=panel("kind", columns=3),
    ),
    "certified": lines(
        "The robust model under noise: accuracy certified, and left by an attack",
        share("accuracy"),
        coloured("curve", {"attacked": VERMILION, "certified": BLUE}),
        x=number("radius", "L2 radius (pixels in [0, 1])", scale=EXTENT),
        band=INTERVAL,
    ),
    "audit_verdicts": cells(
        "Audit: which figures may be believed",
        word("model", sort=MODELS, axis={"labelAngle": 0, "orient": "top"}),
        word("check", axis={"labelLimit": 240}),
        coloured("verdict", VERDICTS),
        {"text": {"field": "verdict"}},
        90,
        [word("seen"), word("meaning", "so")],
        column=panel("rev"),
    ),
    "smallest_eps": lines(
        "How small a budget changes the prediction",
        share("share", "share of images changed"),
        MODEL,
        ATTACK,
        rows=[{"calculate": "upper(datum.attack)", "as": "attack"}],
    )
    | {"mark": "line"},
    "seeds": lines(
        "Accuracy over seeds: mean and 95 % interval",
        share("mean", "test accuracy"),
        MODEL,
        ATTACK,
        also=[word("seeds")],
        band=INTERVAL,
    ),
}
for _name, _attack in {"confusion": "strongest", "confusion_clean": "clean"}.items():
    TEMPLATES[_name] = cells(
        f"What is taken for what, {_attack}: share of each class",
        word("taken_for", "taken for", sort=None, axis={"labelAngle": -40}),
        word("class"),
        number("share", scale={"scheme": "viridis", "domain": [0, 1]}),
        {"text": {"field": "share", "format": ".2f"}, "color": white_on_dark("share", 0.6)},
        30,
        [],
        [{"filter": f"datum.attack == '{_attack}'"}],
        column=panel("model", *MODELS),
        row=panel("rev"),
    )
for _model in MODELS:
    TEMPLATES |= {
        f"roc_{_model}": of_scores(f"ROC of every score, {_model} model", **roc),
        f"pr_{_model}": of_scores(f"Precision and recall of every score, {_model} model", **precision_recall),
        f"ood_histogram_{_model}": histograms(f"Confidence of the {_model} model"),
        f"audit_{_model}": lines(f"Audit: every attack on the {_model} model", share("accuracy"), AUDITED),
    }


def written(value: Any, margin: str = "\n") -> str:
    """JSON whose lines are short: what fits into one stands in one, anything longer has a line for each part."""
    line = json.dumps(value)
    if len(margin) + len(line) < 110 or not isinstance(value, dict | list | tuple):
        return line
    keys = [f"{json.dumps(key)}: " for key in value] if isinstance(value, dict) else [""] * len(value)
    parts = value.values() if isinstance(value, dict) else value
    inner = [f"{margin} {key}{written(part, margin + ' ')}" for key, part in zip(keys, parts, strict=True)]
    return line[0] + ",".join(inner) + margin + line[-1]


def stale(folder: Path) -> dict[str, str]:
    """By name, what the files in `folder` should hold that are missing there or hold anything else."""
    texts = {f"{name}.json": f"{written(spec)}\n" for name, spec in TEMPLATES.items()}
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    return {name: text for name, text in texts.items() if found.get(name) != text}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 and name those that are stale")
    check, found = parser.parse_args().check, stale(FOLDER)
    if check and found:
        sys.exit(f"error: stale in .dvc/plots: {', '.join(found)}; run python -m scripts.templates")
    for name, text in found.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"{len(TEMPLATES)} templates, {len(found)} written")


if __name__ == "__main__":
    main()
