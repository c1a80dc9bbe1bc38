"""Every benchmark beside its peers in one run, as one markdown table: python -m benchmarks

Prints the table and writes it into docs/performance.md, between its markers. --quick uses a few embedded images and
writes nothing.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import audit, common, ood, sweep, time_to_accuracy, training
from stages.common.errors import run

DOCUMENT = Path("docs/performance.md")
START, END = "<!-- table: python -m benchmarks -->", "<!-- /table -->"


def rows(quick: bool) -> Iterator[tuple[str, str, str, float]]:
    """What is measured, ours, the peer's, and their ratio; the shortest first."""
    for peer, found in sweep.measure(quick).items():
        what = f"FGSM sweep of {found['budgets']} budgets, {found['equal']:.1%} equal predictions"
        yield what, f"{found['ours_s']:.2f} s", f"{peer}: {found['peer_s']:.2f} s", found["ratio"]
    found = audit.measure(quick)
    what = f"an audit's attacks on {found['images']} images, {found['equal']:.1%} equal under the strongest"
    ours, peer = (f"{found[f'{side}_s']:.0f} s, leaves {found[f'{side}_left']:.3f}" for side in ("ours", "peer"))
    yield what, ours, f"torchattacks: {peer}", found["ratio"]
    found = ood.measure(quick)
    what = f"{len(ood.SAME)} OOD scores, rank correlation {found['lowest_rank_correlation']:.5f} or more"
    yield what, f"{found['ours_s']:.1f} s", f"pytorch-ood: {found['peer_s']:.1f} s", found["ratio"]
    found = training.measure(quick)
    share, kind = found["share_of_matrix_product"], str(training.precision(quick)).removeprefix("torch.")
    what = f"training, at {share:.2f} of a {kind} matrix product's speed"
    ours, peer = (
        f"{found[f'{side}_images_s']:.0f} images/s, {found[f'{side}_gb']:.2f} GB" for side in ("ours", "peer")
    )
    yield what, ours, f"DataLoader loop, the same net: {peer}", found["ratio"]
    found = time_to_accuracy.measure(quick)
    what = f"training to {time_to_accuracy.GOAL:.0%} test accuracy"
    ours, peer = (f"{found[f'{side}_s']:.1f} s ({found[f'{side}_accuracy']:.3f})" for side in ("ours", "study"))
    yield what, ours, f"the study's recipe: {peer}", found["ratio"]


def main() -> None:
    quick = common.asked_quick(__doc__)
    lines = ["| measured | ours | peer | times faster |", "|---|---|---|---:|"]
    for what, ours, peer, ratio in rows(quick):
        lines.append(f"| {what} | {ours} | {peer} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    table = "\n".join([f"Measured on {common.machine()}.", "", *lines])
    if quick:
        return
    common.put_table(DOCUMENT, START, END, table)


if __name__ == "__main__":
    run(main)
