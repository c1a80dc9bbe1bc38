"""Write each stage's dependencies on code into dvc.yaml, from its imports: python -m scripts.deps, or make deps

A stage depends on every module that it imports, directly or not, and on nothing else, so that editing a score retrains
no model. A folder that is imported whole is named as one. Files that hold no code, DECLARATIONS and REFUSALS are left
out; imports for type checkers alone do not count. Dependencies on data are written by hand and stay.

--check changes nothing and fails where dvc.yaml is stale.
"""

import argparse
import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML

PACKAGE = "stages"
# What can stop a stage, but changes nothing of what it gives: declarations, whose imports count, and refusals, whose
# imports do not (the head of each file says so)
DECLARATIONS = {"stages/common/params/schema.py"}
REFUSALS = {"stages/common/params/faults.py"}


def imports(path: Path) -> Iterator[str]:
    """The project's own modules that `path` names in its imports, as dotted names; some may be names inside modules."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_checkers = {id(n) for block in ast.walk(tree) if _is_type_checking(block) for n in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def files_of(module: str, root: Path) -> Iterator[Path]:
    """The files that importing `module` runs: its own, and the __init__ of each package above it."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        for file in (place / "__init__.py", place.with_suffix(".py")):
            if file.is_file():
                yield file


def closure(script: Path, root: Path) -> list[str]:
    """Every file or whole folder that `script` depends on, itself first, the others sorted; paths below `root`."""
    found: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        named = {file for module in imports(path) for file in files_of(module, root)}
        new = {file for file in named - found - {script} if file.relative_to(root).as_posix() not in REFUSALS}
        found |= new
        waiting += new
    files = {file for file in found if file.stat().st_size and file.relative_to(root).as_posix() not in DECLARATIONS}
    for folder in {file.parent for file in files}:
        inside = set(folder.rglob("*.py"))
        if (folder / "__init__.py") in files and inside <= files:
            files = files - inside | {folder}
    return [path.relative_to(root).as_posix() for path in [script, *sorted(files)]]


def refresh(text: str, root: Path) -> str:
    """dvc.yaml's `text` with the dependencies on code as they are; its comments and all else stay."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    content = yaml.load(text)
    for name, stage in content["stages"].items():
        data = [dep for dep in stage["deps"] if not dep.startswith(f"{PACKAGE}/")]
        stage["deps"][:] = [*closure(root / PACKAGE / f"{name}.py", root), *data]
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where dvc.yaml is stale")
    check = parser.parse_args().check
    path = Path("dvc.yaml")
    text = path.read_text(encoding="utf-8")
    wanted = refresh(text, Path())
    if wanted == text:
        print("dvc.yaml: dependencies are as the imports say")
    elif check:
        sys.exit("error: dvc.yaml: dependencies are not as the imports say; run `make deps`")
    else:
        path.write_text(wanted, encoding="utf-8")
        print("dvc.yaml: dependencies written")


if __name__ == "__main__":
    main()
