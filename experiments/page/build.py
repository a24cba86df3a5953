"""Builds the page as one file: libraries, style, script and data are inside, packed.

The page's policy allows the scripts with the hashes of those in it, and no connection: text of a
run can neither run nor fetch. The libraries lie in it compressed, which halves a file of 6 MB, and
the browser unpacks Plotly after it has shown the table.
"""

import base64
import gzip
import hashlib
import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.page.payload import PICTURES
from experiments.records.files import open_regular

_ASSETS = Path(__file__).resolve().parent / "assets"
_SCRIPTS = (
    *("statistics.js", "verdicts.js", "model.js", "table.js", "charts.js", "detail.js"),
    "page.js",  # it starts the others
)
LARGEST_PICTURE = 4 * 2**20  # bytes
_MOST_PICTURES = 6 * 2**20  # bytes in one file, which may be sent by mail
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has no such flag
_PNG = b"\x89PNG\r\n\x1a\n"
# The names under which the module of DataTables exports its class.
_EXPORT = re.compile(r"export\s*\{([^{}]*)\}\s*;?")


class PageError(ValueError):
    """The page can't be built; the message names the remedy."""


def static_page(content: Mapping[str, Any], table: str) -> str:
    """The page as one file that works without a network.

    Args:
        content: as `payload` makes it, with ``view``, the settings of the page to begin with.
        table: HTML for browsers without JavaScript.
    """
    return _page(content, table, live=False)


def live_page(content: Mapping[str, Any]) -> str:
    """The page that asks its server for news."""
    return _page(content, "<p>This page needs JavaScript.</p>", live=True)


def policy(live: bool) -> str:
    """The Content-Security-Policy of the page.

    Args:
        live: whether it may ask its own server for data and pictures.
    """
    scripts = " ".join(_source(text) for text in (_own_script(), datatables(), plotly()))
    own = " 'self'" if live else ""
    connect = "connect-src 'self'; " if live else ""
    return (
        f"default-src 'none'; script-src {scripts}; {connect}img-src data: blob:{own}; "
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )


def embedded_pictures(folders: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """The pictures of runs as data addresses, first runs first, until the file is large enough.

    Args:
        folders: of the runs, by their names.
    """
    found: dict[str, dict[str, str]] = {}
    size = 0
    for file in PICTURES[:1]:
        for name, folder in folders.items():
            content = picture(folder / file)
            if content and size + len(content) <= _MOST_PICTURES:
                size += len(content)
                data = base64.b64encode(content).decode()
                found.setdefault(name, {})[file] = f"data:image/png;base64,{data}"
    return found


def picture(path: Path) -> bytes | None:
    """The content of a PNG file; None if it is none, too large, a link or gone."""
    try:
        with open_regular(path, flags=_NO_LINK) as file:
            content: bytes = file.read(LARGEST_PICTURE + 1)
    except OSError:
        return None
    return content if content.startswith(_PNG) and len(content) <= LARGEST_PICTURE else None


def _page(content: Mapping[str, Any], table: str, live: bool) -> str:
    parts = {
        "policy": html.escape(policy(live)),
        "style": f"{_datatables_style()}\n{_asset('page.css')}",
        "table": table,
        "datatables": _packed(datatables()),
        "plotly": _packed(plotly()),
        "data": pack(json.dumps(content, allow_nan=False)),
        "script": _own_script(),
    }
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], _asset("page.html"))


def pack(text: str) -> str:
    """Compresses a text to letters that mean nothing in HTML."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


@cache
def _packed(text: str) -> str:
    return pack(text)


def _source(script: str) -> str:
    """A script as a source in a policy: its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


@cache
def _own_script() -> str:
    return '"use strict";\n' + "\n".join(map(_asset, _SCRIPTS))


@cache
def plotly() -> str:
    """The script of Plotly, with a global ``Plotly``."""
    return _of_package("plotly", "package_data/plotly.min.js")


@cache
def datatables() -> str:
    """The script of DataTables with its extensions, with a global ``DataTable``."""
    text = _of_package("itables", "html/dt_bundle.js")
    found = list(_EXPORT.finditer(text))
    names = dict(_exports(found[-1][1])) if found else {}
    if "default" not in names:
        raise PageError("this version of itables has another form; run: pip install itables==2.9.1")
    end = f"globalThis.DataTable = {names['default']};"
    return f"(() => {{{text[: found[-1].start()]}{end}{text[found[-1].end() :]}\n}})();"


def _exports(names: str) -> Iterable[tuple[str, str]]:
    """The exported names of a module, each with the name inside it."""
    for part in names.split(","):
        inside, _, outside = part.strip().partition(" as ")
        yield outside or inside, inside


def _datatables_style() -> str:
    return _of_package("itables", "html/dt_bundle.css")


def _of_package(package: str, file: str) -> str:
    """A file of an installed package, without its import."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    try:
        return (Path(folders[0]) / file).read_text(encoding="utf-8")
    except (IndexError, OSError) as error:
        raise PageError(
            f"the page needs {file} of the package {package}; run: pip install {package}"
        ) from error
