"""Pages of docs/ that tests follow: blocks of code that name their file, commands, and what these print."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.repository import ROOT

CODE = re.compile(r"^```(?:python|yaml)\n# (\S+), (new|above|below|instead of)(?:: (.*?))?\n(.*?)^```$", re.M | re.S)
SHELL = re.compile(r"^```sh\n(.*?)\n```$(?:\n\n```text\n(.*?)\n```$)?", re.M | re.S)


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def sections(page: str) -> dict[str, str]:
    """What stands under each heading of the second level."""
    return dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.M | re.S))


def apply(text: str, folder: Path) -> None:
    """Write the text's blocks of code into the folder; each place that one names must be there exactly once."""
    blocks = CODE.findall(text)
    assert blocks
    for name, where, line, content in blocks:
        path = folder / name
        if where == "new":
            assert not path.exists()
            path.write_text(content)
            continue
        lines = path.read_text().splitlines(keepends=True)
        places = [i for i, found in enumerate(lines) if found.startswith(line)]
        assert len(places) == 1, f"{name}: {line!r} stands there {len(places)} times"
        if where == "above" and name.endswith(".py") and not content.startswith(" "):
            content = content.rstrip("\n") + "\n\n\n"  # functions and classes stand two lines apart
        start, end = {"above": (0, 0), "below": (1, 1), "instead of": (0, 1)}[where]
        lines[places[0] + start : places[0] + end] = [content]
        path.write_text("".join(lines))


def commands(text: str) -> list[tuple[str, str]]:
    """Each line of the text's shell blocks, and what is shown to be printed under the block's last one."""
    found = []
    for block, shown in SHELL.findall(text):
        *before, last = block.splitlines()
        found += [*((line, "") for line in before), (last, shown)]
    return found


def not_printed(shown: str, printed: str) -> Iterator[str]:
    """The shown lines that were not printed in that order. Figures may differ, and verdicts with them."""
    lines = iter(printed.splitlines())
    for line in shown.splitlines():
        if line != "..." and not any(re.match(_pattern(line), found) for found in lines):
            yield line


def _pattern(shown: str) -> str:
    """A shown line as a regular expression; what a failed check means is not said where it passes."""
    verdict, said = re.fullmatch(r"(  (?:pass|warn|FAIL)  )?(.*)", shown).groups()
    said = said.partition(":")[0] if verdict else said.removesuffix(": read them before any figure")
    start = "  (?:pass|warn|FAIL)  " if verdict else ""
    return start + r"\S+".join(map(re.escape, re.split(r"\d[\d.]*", said)))
