"""A page of headings, paragraphs, tables and figures, as Markdown or as one HTML file."""

import base64
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 100rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left;
  vertical-align: top }
th { background: #f4f4f4 }
p, figcaption { max-width: 60rem }
img { max-width: min(100%, 75rem) }
code { background: #f4f4f4; padding: 0 .2rem; overflow-wrap: anywhere }
figcaption { color: #555 }
"""


@dataclass(frozen=True)
class Heading:
    """A heading of the second level."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; `` `code` `` is set as code."""

    text: str


@dataclass(frozen=True)
class Figure:
    """A PNG with a caption."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table, without its index."""

    frame: pd.DataFrame


Block = Heading | Paragraph | Figure | Table


def markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Renders a page as Markdown.

    Args:
        title: its heading.
        blocks: what is on it.
        folder: where the page will lie; figures are linked from there.
    """
    parts = [f"# {title}", *(_markdown(block, folder) for block in blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Paragraph(text):
            return text
        case Figure(path, caption):
            link = Path(os.path.relpath(path, folder)).as_posix()
            return f"![{caption}]({link})\n\n*{caption}*"
        case Table(frame):
            return markdown_table(frame)


def markdown_table(frame: pd.DataFrame) -> str:
    """Renders a table as Markdown; a bar inside a cell does not end it."""
    escaped = frame.astype(str).replace({r"\|": r"\\|"}, regex=True)
    text: str = escaped.to_markdown(index=False, disable_numparse=True)
    return text


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """Renders a page as one HTML file that needs no other: figures are inside."""
    body = "\n".join(_html(block) for block in blocks)
    name = html.escape(title)
    head = f'<meta charset="utf-8"><title>{name}</title><style>{_STYLE}</style>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Paragraph(text):
            return f"<p>{_inline(text)}</p>"
        case Figure(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            image = f'<img alt="{html.escape(caption)}" src="data:image/png;base64,{data}">'
            return f"<figure>{image}<figcaption>{_inline(caption)}</figcaption></figure>"
        case Table(frame):
            cells = frame.astype(str).map(_inline)
            table: str = cells.to_html(index=False, border=0, escape=False)
            return table


def _inline(text: str) -> str:
    text = html.escape(text).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
