"""Bring weights/ up to date: the remote of DVC that travels with git, and holds the two checkpoints of dvc.lock alone.

    python -m scripts.weights             # after a training, or make publish; then commit weights/
    python -m scripts.weights --check     # change nothing; fail where a clone would get other checkpoints, or none

.dvc/config says where the remote `weights` lies. One that is elsewhere (S3, HTTP, a folder outside of the project) is
filled and never tidied: other things may lie there.
"""

import argparse
import hashlib
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common import errors
from stages.common.artifacts import CHECKPOINTS, MODELS
from stages.common.errors import UserError

REMOTE, LOCK = "weights", Path("dvc.lock")
BLOCK = 1 << 20  # bytes read at a time


def locked() -> dict[Path, str]:
    """The MD5 of each model's checkpoint, as dvc.lock has it. Raises UserError where it names none."""
    try:
        stages = YAML(typ="safe", pure=True).load(LOCK)["stages"]
        outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
        return {path: outs[path.as_posix()] for path in (CHECKPOINTS / f"{model}.pt" for model in MODELS)}
    except (FileNotFoundError, YAMLError, KeyError, TypeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{LOCK} names no trained checkpoints ({reason[:200]}); run `dvc repro`") from None


def own_folder(repo: Repo) -> Path | None:
    """Where the remote lies, if that is a folder of this project. Raises UserError where there is no such remote."""
    try:
        url = str(repo.config["remote"][REMOTE]["url"])
    except KeyError:
        raise UserError(f".dvc/config has no remote {REMOTE!r}; say `dvc remote add {REMOTE} {REMOTE}`") from None
    root = Path(repo.root_dir).resolve()
    folder = Path(url).resolve()  # DVC gives a folder's own path
    return folder if "://" not in url and root in folder.parents else None


def place(folder: Path, md5: str) -> Path:
    """Where DVC keeps a file of this content in a remote."""
    return folder / "files/md5" / md5[:2] / md5[2:]


def faults(folder: Path, wanted: dict[Path, str]) -> dict[Path, str]:
    """What is wrong with `folder`, by file: a checkpoint that is missing or damaged, a file that is none of them."""
    found = {}
    for path, md5 in wanted.items():
        kept = place(folder, md5)
        if not kept.is_file():
            found[kept] = f"{path} is missing"
        elif _md5(kept) != md5:
            found[kept] = f"{path} is damaged"
    expected = {place(folder, md5) for md5 in wanted.values()}
    strangers = (path for path in sorted(folder.rglob("*")) if not path.is_dir() and path not in expected)
    return found | dict.fromkeys(strangers, "no checkpoint of dvc.lock")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def check(repo: Repo) -> None:
    """Raises UserError where the remote's folder does not hold exactly the checkpoints of dvc.lock."""
    wanted, folder = locked(), own_folder(repo)
    if folder is None:
        print(f"the remote {REMOTE} lies outside of this project: not looked at")
        return
    found = faults(folder, wanted)
    if found:
        lines = (f"{path.relative_to(repo.root_dir)}: {what}" for path, what in found.items())
        raise UserError("; ".join([*lines, "run `make publish` and commit the folder"]))
    print(f"{folder.relative_to(repo.root_dir)}/ holds the checkpoints of {LOCK}")


def publish(repo: Repo) -> None:
    """Send the checkpoints of dvc.lock to the remote, and then, in a folder of this project, delete all else.

    Raises UserError where DVC's cache lacks one of them: nothing is deleted then but what was damaged.
    """
    wanted, folder = locked(), own_folder(repo)
    if folder is not None:
        for md5 in wanted.values():
            kept = place(folder, md5)
            if kept.is_file() and _md5(kept) != md5:  # DVC would take it for whole
                kept.unlink()
    try:
        repo.push(targets=[str(path) for path in wanted], remote=REMOTE)
    except DvcException as error:
        raise UserError(f"the remote {REMOTE} does not take the checkpoints: {error}") from None
    if folder is None:
        print(f"sent to the remote {REMOTE}")
        return
    absent = [str(path) for path, md5 in wanted.items() if not place(folder, md5).is_file()]
    if absent:
        raise UserError(f"{' and '.join(absent)}: not in DVC's cache as {LOCK} has it; run `dvc repro` first")
    for path in faults(folder, wanted):
        path.unlink()
    for empty in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(empty.iterdir()):
            empty.rmdir()
    check(repo)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where the folder is stale")
    asked = parser.parse_args()

    def run() -> None:
        try:
            repo = Repo()
        except DvcException as error:
            raise UserError(f"{error}; run from the project's folder") from None
        with repo:
            (check if asked.check else publish)(repo)

    errors.run(run)


if __name__ == "__main__":
    main()
