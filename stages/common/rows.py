"""What the stages know of each image, a row an image: each of them writes its part, and one joins the parts.

An image is told by its set (test, ood, or the name of an extra set) and by its index there. Every part holds these two,
and columns that no other part has, named <model>_<what>: what an attack at a budget leaves is <model>_<attack>_<eps>, 1
where the image survives and 0 where it does not. A cell is empty where nobody looked.
"""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path

import pandas as pd
from torch import Tensor

from stages.common import artifacts
from stages.common.errors import UserError

FOLDER = Path("data/rows")  # of the parts; artifacts.ROWS is where they are joined
KEY = ["set", "index"]
FIRST = {"test": 0, "ood": 1}  # the order of the sets; extra ones follow by name
WORDS = ("set", "class", "taken_for")  # how the columns end that hold names: these may be digits, or the word nan
DIGITS = "%.7g"  # what float32 tells apart


def column(model: str, attack: str, eps: float) -> str:
    """The column of what `attack` at the budget `eps` leaves: standard_fgsm_0.05."""
    return f"{model}_{attack}_{eps:.4g}"


def part(name: str, index: Tensor, columns: Mapping[str, Tensor | Sequence[object]]) -> pd.DataFrame:
    """The images at `index`, int64 (n,), of the set `name`, and what is known of each: columns (n,), bool ones as 1
    and 0.
    """
    frame = pd.DataFrame({"set": name, "index": index.numpy()})
    for title, values in columns.items():
        found = pd.Series(values.numpy() if isinstance(values, Tensor) else list(values))
        frame[title] = found.astype("Int64") if found.dtype == bool else found  # which may be missing
    return frame


def join(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row for each image that any of the parts has, in the order of sets and indices, the columns in theirs.

    Raises ValueError where two parts have a column of one name, or one has an image twice.
    """
    titles = [title for frame in parts for title in frame.columns if title not in KEY]
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ValueError(f"more than one stage writes the column {', '.join(twice)}")
    joined = reduce(lambda left, right: left.merge(right, how="outer", on=KEY, validate="one_to_one"), parts)
    rank = joined["set"].map(lambda name: FIRST.get(name, len(FIRST)))
    return joined.assign(rank=rank).sort_values(["rank", *KEY]).drop(columns="rank").reset_index(drop=True)


def write(path: Path, table: pd.DataFrame) -> None:
    """Write a part, or all of them joined, as CSV."""
    artifacts.write_bytes(path, table.to_csv(index=False, lineterminator="\n", float_format=DIGITS).encode())


def read(path: Path) -> pd.DataFrame:
    """What `write` wrote, every cell but the index as its text, so that it can be written again without a change.
    Raises UserError where there is none.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro`, or `dvc checkout` after a `dvc pull`")
    return pd.read_csv(path, dtype=str, keep_default_na=False).astype({"index": "int64"})


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The same with every cell as what it says: numbers, NaN where it is empty, and names as text."""
    found = table.copy()
    for title in table.columns:
        if not title.endswith(WORDS):
            found[title] = pd.to_numeric(table[title].replace("", None))
    return found
