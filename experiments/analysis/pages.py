"""A page of headings, paragraphs, tables and figures, as Markdown or as one HTML file.

All text is escaped, so text from other sources is neither markup nor code of the page. A block has
a flag if this project itself wrote `` `code` `` in its text.
"""

import base64
import html
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from experiments.texts import printable

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
# A page runs and loads nothing, even if it contains foreign content.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_CODE = re.compile(r"`([^`]*)`")
# Characters with a meaning in Markdown, or in GitHub's: emphasis, code, a tag, mathematics, the end
# of a cell, an entity, a link or an image, an address, a name.
_MARKUP = re.compile(
    r"[\\`*~$|<]|(?<!\w)_|_(?!\w)|&(?=#?\w+;)|\](?=[(\[:])"
    r"|:(?=//)|(?<=www)\.|(?<!\w)@(?=\w)",
    re.IGNORECASE,
)
_BEGINS_A_BLOCK = re.compile(r"^(\d*)(?=[#>+\-=:.)[])")


@dataclass(frozen=True)
class Heading:
    """A heading of the second level."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph; if it has code, `` `code` `` is set as such."""

    text: str
    has_code: bool = False


@dataclass(frozen=True)
class Figure:
    """A PNG with a caption, in which `` `code` `` is set as code."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """A table, without its index; in columns with code, `` `code` `` is set as such."""

    frame: pd.DataFrame
    with_code: tuple[str, ...] = ()


Block = Heading | Paragraph | Figure | Table


# ---- Markdown -----------------------------------------------------------------------------------


def markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Renders a page as Markdown.

    Args:
        title: its heading.
        blocks: its content.
        folder: the folder of the page, for relative links to figures.
    """
    return f"# {_in_markdown(title)}\n\n{markdown_blocks(blocks, folder)}"


def markdown_blocks(blocks: Sequence[Block], folder: Path = Path()) -> str:
    """Renders blocks as Markdown, with links to figures relative to the folder of the page."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text):
            return f"## {_in_markdown(text)}"
        case Paragraph(text, has_code):
            return _BEGINS_A_BLOCK.sub(r"\1\\", _in_markdown(text.strip(), has_code))
        case Figure(path, caption):
            link = quote(Path(os.path.relpath(path, folder)).as_posix())
            text = _in_markdown(caption, has_code=True)
            return f"![{text}]({link})\n\n*{text}*"
        case Table(frame, with_code):
            return markdown_table(frame, with_code)


def markdown_table(frame: pd.DataFrame, with_code: Sequence[str] = ()) -> str:
    """Renders a table as Markdown.

    Args:
        frame: the table, without its index.
        with_code: columns in which `` `code` `` is set as code.
    """

    def cell(text: str, column: str) -> str:
        return _in_markdown(text, column in with_code, in_table=True)

    text: str = _rendered(frame, cell).to_markdown(index=False, disable_numparse=True)
    return text


def _in_markdown(text: str, has_code: bool = False, in_table: bool = False) -> str:
    def code(inner: str) -> str:
        return f"`{inner.replace('|', chr(92) + '|') if in_table else inner}`"

    return _set(text, has_code, lambda plain: _MARKUP.sub(_escaped, plain), code)


def _escaped(found: re.Match[str]) -> str:
    entities = {"<": "&lt;", "&": "&amp;"}  # not every Markdown allows a backslash before them
    return entities.get(found[0], rf"\{found[0]}")


def _set(text: str, has_code: bool, plain: Callable[[str], str], code: Callable[[str], str]) -> str:
    """Renders text with one function, and the code in it with another."""
    parts = _CODE.split(printable(text)) if has_code else [printable(text)]
    return "".join(code(part) if at % 2 else plain(part) for at, part in enumerate(parts))


def _rendered(frame: pd.DataFrame, cell: Callable[[str, str], str]) -> pd.DataFrame:
    """A table with rendered column names and cells."""
    columns = list(map(str, frame.columns))
    rows = [
        [cell(str(value), column) for value, column in zip(row, columns, strict=True)]
        for row in frame.to_numpy(dtype=object)
    ]
    return pd.DataFrame(rows, columns=[cell(column, "") for column in columns])


# ---- HTML ---------------------------------------------------------------------------------------


def html_page(title: str, blocks: Sequence[Block]) -> str:
    """Renders a page as one self-contained HTML file, with its figures."""
    body = html_blocks(blocks)
    name = _in_html(title)
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{name}</title><style>{_STYLE}</style>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n'
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def html_blocks(blocks: Sequence[Block]) -> str:
    """Renders blocks as HTML, for a page with a style and a script of its own."""
    return "\n".join(_html(block) for block in blocks)


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_in_html(text)}</h2>"
        case Paragraph(text, has_code):
            return f"<p>{_in_html(text, has_code)}</p>"
        case Figure(path, caption):
            data = base64.b64encode(path.read_bytes()).decode()
            alternative = _in_html(caption)
            image = f'<img alt="{alternative}" src="data:image/png;base64,{data}">'
            caption = _in_html(caption, has_code=True)
            return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
        case Table(frame, with_code):
            return _html_table(frame, with_code)


def _html_table(frame: pd.DataFrame, with_code: Sequence[str]) -> str:
    set_ = _rendered(frame, lambda text, column: _in_html(text, column in with_code))
    head = "".join(f"<th>{column}</th>" for column in set_.columns)
    rows = ["".join(f"<td>{value}</td>" for value in row) for row in set_.to_numpy(dtype=object)]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _in_html(text: str, has_code: bool = False) -> str:
    escaped = _set(text, has_code, html.escape, lambda inner: f"<code>{html.escape(inner)}</code>")
    return escaped.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
