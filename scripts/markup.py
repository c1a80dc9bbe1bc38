"""What the pages that this project writes have in common: they carry their style and pictures in themselves."""

import base64
import html
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
