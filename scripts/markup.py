"""What the pages that this project writes have in common: they carry their style and pictures in themselves."""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path

STYLE = Path(__file__).with_name("style.css")


def style() -> str:
    return STYLE.read_text(encoding="utf-8")


def picture(title: str, png: bytes) -> str:
    """A PNG with its title as the text in its place."""
    data = base64.b64encode(png).decode()
    return f'<figure><img alt="{html.escape(title)}" src="data:image/png;base64,{data}"></figure>'


def verdict(found: str, seen: str) -> str:
    """A cell of an audit's table, with what was seen as its title; the style has a class for each verdict."""
    kind = found.lower().replace("/", "")
    return f'<td class="{kind}" title="{html.escape(seen)}">{found}</td>'


def table(markdown: str) -> str:
    """A markdown table as HTML, with what is bold in it."""
    head, _, *rows = ([cell.strip() for cell in _BAR.split(line)[1:-1]] for line in markdown.splitlines())
    body = "".join(f"<tr><th>{_cell(first)}</th>{_cells(rest, 'td')}</tr>" for first, *rest in rows)
    return f"<table><tr>{_cells(head, 'th')}</tr>{body}</table>"


_BAR = re.compile(r"(?<!\\)\|")  # one behind a backslash stands in a cell


def _cells(texts: Iterable[str], kind: str) -> str:
    return "".join(f"<{kind}>{_cell(text)}</{kind}>" for text in texts)


def _cell(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<b>\1</b>", html.escape(text.replace("\\|", "|")))


def folded(title: str, content: str) -> str:
    """What is shown when its title is clicked."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def plots(names: Iterable[str]) -> str:
    """A place for each plot, which the page's script fills; nothing for none."""
    places = "".join(f'<div data-plot="{html.escape(name)}"></div>' for name in names)
    return places and f'<div class="plots">{places}</div>'
