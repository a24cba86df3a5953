"""Text is UTF-8 wherever it is read or written, whatever the locale says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

SOURCES = [
    path
    for path in sorted(PROJECT.rglob("*.py"))
    if not {".venv", "tests", "build"} & {*path.relative_to(PROJECT).parts}
]
_OPENERS = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "TextIOWrapper"}


def unnamed(code: str) -> Iterator[int]:
    """The lines of calls that read or write text and name no encoding."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        words = {word.arg: word.value for word in node.keywords}
        values = [*node.args, *words.values()]
        constants = [value.value for value in values if isinstance(value, ast.Constant)]
        modes = [c for c in constants if isinstance(c, str) and re.fullmatch(r"[rwax][bt+]*", c)]
        binary = any("b" in mode for mode in modes)
        binary_by_default = {"NamedTemporaryFile", "TemporaryFile"}
        by_default = not values and name not in binary_by_default
        opens = name in _OPENERS and (bool(modes) or by_default or name == "TextIOWrapper")
        of_path = isinstance(node.func, ast.Attribute) and name in {"read_text", "write_text"}
        is_text = of_path or "text" in words or (opens and not binary)
        opens_by_name = name == "open" and isinstance(node.func, ast.Name) and not modes
        if (is_text or opens_by_name) and "encoding" not in words:
            yield node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_every_text_file_is_opened_as_utf8(path: Path) -> None:
    assert [*unnamed(path.read_text(encoding="utf-8"))] == []


def test_this_check_sees_what_it_looks_for() -> None:
    found = """
open(p)
open(p, "w")
p.open()
p.open("a", newline="")
p.read_text()
p.write_text(text)
run(command, text=True)
os.fdopen(descriptor, "w")
"""
    passed = """
open(p, "rb")
p.open("wb")
p.open(mode="r", encoding="utf-8")
p.read_text(encoding="utf-8", errors="replace")
RunRecord.open(path)
Image.open(path)
os.open(path, flags)
run(command, encoding="utf-8")
"""
    assert len([*unnamed(found)]) == len(found.strip().splitlines())
    assert [*unnamed(passed)] == []
