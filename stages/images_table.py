"""Join what the stages know of each image of the test and OOD sets: one table, a row an image.

In:  data/rows/{ood_eval,fgsm_sweep,breakdown,autoattack,audit}.csv
Out: data/images.csv, in DVC's cache and not in git: set, index and class; for both models what the image is taken for
     and how surely, every detector's confidence, which attacks at which budgets it survives, and the smallest budgets
     that were found to change its prediction; a cell is empty where nobody looked

Nothing is computed here. Editing this stage reruns it alone.
"""

from stages.common import artifacts, rows, stage

PARTS = ("ood_eval", "fgsm_sweep", "breakdown", "autoattack", "audit")  # in the order of the columns


def main() -> None:
    table = rows.join([rows.read(rows.FOLDER / f"{stage}.csv") for stage in PARTS])
    rows.write(artifacts.ROWS, table)
    counts = ", ".join(f"{count:,} {name}" for name, count in table["set"].value_counts(sort=False).items())
    print(f"{artifacts.ROWS}: {counts} images, {len(table.columns)} columns; next: make images-table")


if __name__ == "__main__":
    stage.run(main, ranked=False)
