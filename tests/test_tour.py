"""docs/tour.ipynb: its cells, run in order as Jupyter runs them, do what they claim, and leave nothing behind."""

import json
import os
import subprocess
import sys

from tests.repository import ROOT

NOTEBOOK = ROOT / "docs/tour.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
SOURCES = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
CAUGHT = [  # each of the study's mistakes, by what catches it
    "refused: pixels must lie in [0, 1], got [-1, 1]",
    "FAIL  eps_zero_is_clean",
    "FAIL  targeted_lowers_loss",
    "guessing   AP with ID positive 0.8",
    "here: 0\nrefused: 909 of 909 are test images that are training or validation images too",
    "FAIL  fgsm_close_to_pgd: ",
    "softmax_not_saturated: ",
    "  FAIL  fgsm_close_to_pgd  ",  # of the whole audit
]


def test_every_cell_runs_and_every_mistake_is_caught():
    before = set((ROOT / "docs").iterdir())
    env = os.environ | {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
    env.pop("PYTHONPATH", None)  # the notebook finds the project by itself
    command = [sys.executable, "-W", "ignore:FigureCanvasAgg", "-c", "\n\n".join(SOURCES)]
    done = subprocess.run(command, cwd=NOTEBOOK.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rest = done.stdout
    for line in CAUGHT:
        _, found, rest = rest.partition(line)
        assert found, f"{line!r} was not printed, or not in this order:\n{done.stdout}"
    assert set((ROOT / "docs").iterdir()) == before


def test_no_output_is_stored():
    """Figures differ in the last place from one processor to the next, and pictures are large."""
    for cell in CELLS:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert NOTEBOOK.stat().st_size < 50_000
