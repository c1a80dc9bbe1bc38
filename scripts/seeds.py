"""Run the study with several seeds, as DVC experiments, and say how far its figures vary.

    python -m scripts.seeds 3                       # seeds 0, 1 and 2; those that have run are not run again
    python -m scripts.seeds 3 -S dataset=digits     # with other parameters, as for `dvc exp run`
    make seeds N=3

Prints a markdown table, mean and standard deviation with Student's 95 % interval of the mean, and writes it to
build/seeds.md; build/seeds.csv holds the same of accuracy against eps, and build/seeds DVC's plot of it, with a band.
"""

import argparse
import io
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import dvc.api
import numpy as np
import pandas as pd
from scipy import stats

from scripts import summary
from stages.common.artifacts import MODELS

OUT = Path("build")


def experiment(seed: int, settings: list[str]) -> str:
    """The experiment's name: it tells the seed and what else was set, so that a second call finds it."""
    turned = "".join(f"-{setting.replace('=', '-')}" for setting in settings)
    return "seed-" + "".join(c if c.isalnum() or c in "-." else "_" for c in f"{seed}{turned}")


def run(seed: int, settings: list[str]) -> str:
    """Run the pipeline with `seed` beside the working tree, unless that has been done from this commit."""
    name = experiment(seed, settings)
    listed = subprocess.run(["dvc", "exp", "list", "--name-only"], capture_output=True, text=True, check=True)
    if name in listed.stdout.split():
        print(f"{name}: has run already (dvc exp remove {name} to run it again)", flush=True)
        return name
    options = [option for setting in [f"seed={seed}", *settings] for option in ("-S", setting)]
    ran = subprocess.run(["dvc", "exp", "run", "--temp", "--name", name, *options])
    if ran.returncode:
        sys.exit(f"error: {name} failed; what has run is kept, so the same command goes on with it")
    return name


def table(metrics: Sequence[Mapping[str, summary.Figures]]) -> str:
    """Markdown of the headline figures over the runs in `metrics`: mean, standard deviation, interval of the mean."""
    lines = [f"| | {' | '.join(MODELS)} |", "|---|" + "---:|" * len(MODELS)]
    for title, name, key in summary.rows(metrics[0]):
        if key != "verdict":
            found = [[summary.figure(run[name][model], key) for run in metrics] for model in MODELS]
            cells = [spread([value for value in values if value is not None]) for values in found]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """mean ± standard deviation [Student's 95 % interval of the mean], three places each."""
    mean, deviation, reach = statistics(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {deviation:.3f} [{mean - reach:.3f}, {mean + reach:.3f}]"


def statistics(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, standard deviation, and half of Student's 95 % interval of the mean; both 0 for a single value."""
    if len(values) == 1:
        return float(values[0]), 0.0, 0.0
    deviation = float(np.std(values, ddof=1))
    return (
        float(np.mean(values)),
        deviation,
        float(stats.t.ppf(0.975, len(values) - 1)) * deviation / len(values) ** 0.5,
    )


def bands(sweeps: list[pd.DataFrame]) -> pd.DataFrame:
    """A row per model, attack and eps: mean, deviation and interval over the seeds' plots/fgsm_sweep.csv."""
    columns = {(m, a): m if a == "FGSM" else f"{m}_pgd" for m in MODELS for a in ("FGSM", "PGD")}
    rows = []
    for (model, attack), column in columns.items():
        for eps, *values in zip(sweeps[0].eps, *(sweep[column] for sweep in sweeps), strict=True):
            mean, deviation, reach = statistics(values)
            row = {"eps": eps, "model": model, "attack": attack, "seeds": len(sweeps), "mean": mean}
            rows.append(row | {"deviation": deviation, "low": max(mean - reach, 0), "high": min(mean + reach, 1)})
    return pd.DataFrame(rows).round(6)


def draw() -> None:
    """DVC's own plot of build/seeds.csv, by the template .dvc/plots/seeds.json, as build/seeds/index.html."""
    command = ["dvc", "plots", "show", str(OUT / "seeds.csv"), "--template", "seeds", "--out", str(OUT / "seeds")]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, nargs="?", default=3, help="how many: 0, 1, ... (default 3)")
    parser.add_argument("-S", "--set-param", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error("at least one seed")
    names = [run(seed, arguments.settings) for seed in range(arguments.seeds)]
    written = table([summary.read(name) for name in names])
    sweeps = [pd.read_csv(io.StringIO(dvc.api.read("plots/fgsm_sweep.csv", rev=name))) for name in names]
    OUT.mkdir(exist_ok=True)
    (OUT / "seeds.md").write_text(written + "\n", encoding="utf-8")
    bands(sweeps).to_csv(OUT / "seeds.csv", index=False)
    draw()
    print(f"\n{len(names)} seeds: mean ± standard deviation [95 % interval of the mean]\n\n{written}")


if __name__ == "__main__":
    main()
