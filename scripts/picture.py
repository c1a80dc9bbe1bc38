"""Draw the pipeline's DVC plots as PNG, with the Vega inside vl-convert: no browser, no network.

python -m scripts.picture                       # README's picture, docs/results.png
python -m scripts.picture FOLDER                # every plot of `dvc plots show`, into FOLDER
"""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import vl_convert
from PIL import Image

Spec = dict[str, Any]  # Vega-Lite

RESULTS = ("FGSM against PGD", "plots/roc_max_logit.csv")  # side by side in README


def specs(revision: str | None = None) -> dict[str, Spec]:
    """Vega-Lite specifications of the working tree's plots by id, beside those of `revision` in the same picture.

    A plot that `revision` does not have yet is drawn for the working tree alone. Raises RuntimeError if DVC reports
    any other error.
    """
    what = ["show"] if revision is None else ["diff", revision]
    shown = subprocess.run(["dvc", "plots", *what, "--json"], capture_output=True, text=True)
    if shown.returncode:
        raise RuntimeError(f"dvc plots {' '.join(what)}: {shown.stderr.strip()}")
    plots = json.loads(shown.stdout)
    errors = [
        error
        for error in plots.get("errors", [])
        if revision is None or (error["rev"], error["type"]) != (revision, "FileNotFoundError")
    ]
    if errors:
        raise RuntimeError(f"dvc plots {' '.join(what)}: {errors}")  # DVC itself exits with 0 then
    drawn = {}
    for plot, revisions in plots["data"].items():
        for shown_plot in revisions:
            if shown_plot["type"] == "vega":
                content = shown_plot["content"]
                drawn[plot] = json.loads(content) if isinstance(content, str) else content
    return drawn


def png(spec: Spec, scale: float = 1.5) -> bytes:
    return vl_convert.vegalite_to_png(spec, scale=scale)


def side_by_side(pictures: list[bytes]) -> bytes:
    opened = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    width = sum(picture.width for picture in opened)
    canvas = Image.new("RGB", (width, max(picture.height for picture in opened)), "white")
    left = 0
    for picture in opened:
        canvas.paste(picture, (left, 0))
        left += picture.width
    buffer = io.BytesIO()
    canvas.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    drawn = specs()
    if len(sys.argv) > 1:
        folder = Path(sys.argv[1])
        folder.mkdir(parents=True, exist_ok=True)
        for name, spec in drawn.items():
            (folder / f"{name.replace('/', '_')}.png").write_bytes(png(spec))
        print(f"{len(drawn)} plots in {folder}")
        return
    Path("docs").mkdir(exist_ok=True)
    Path("docs/results.png").write_bytes(side_by_side([png(drawn[name]) for name in RESULTS]))
    print("docs/results.png drawn")


if __name__ == "__main__":
    main()
