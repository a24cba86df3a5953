"""Makes text from other sources safe to show in a terminal or a spreadsheet."""

import re
import unicodedata
from typing import Any, Literal

# Invisible characters that Unicode classifies as letters, marks or symbols.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\U000e0100-\U000e01ef]"
)
_HUGE = 1e6
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# A backslash starts an escape; much of Europe separates cells by ``;``.
_ESCAPED = str.maketrans({"\\": r"\\", ";": r"\x3b"})
# OWASP's list of characters that begin a formula, with full-width forms; tab and CR are escaped.
_FORMULA = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def printable(text: str) -> str:
    r"""Escapes characters that control a terminal or are invisible: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        text: any text; the result is one line.
    """
    if text.isprintable() and not _INVISIBLE.search(text):
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "
    if character.isprintable() and not _INVISIBLE.match(character):
        return character
    return character.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """Cuts a text to ``most`` characters; an ellipsis marks the cut."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def decimals(value: float, places: int = 4, sign: Literal["", "+"] = "") -> str:
    """A number with ``places`` decimals; one too small or too huge for them as ``1.2e+30``.

    Args:
        value: the number.
        places: decimals.
        sign: ``+`` to show it of a positive number, too.
    """
    size = abs(value)
    is_plain = not size or 10.0**-places <= size < _HUGE
    return f"{value:{sign}.{places}f}" if is_plain else f"{value:{sign}.{places}g}"


def csv_cell(value: Any) -> Any:
    r"""Makes a value of a CSV file text that no spreadsheet takes for a formula.

    A text that begins like a formula (``=``, ``+``, ``-``, ``@``) or with ``'`` gets a ``'`` in
    front. Characters that can't be shown are escaped as in Python (``\t``, ``\x1b``, ``\udcff`` for
    a byte that is not UTF-8), and so are ``\`` and ``;``. To decode the text, remove a ``'`` from
    its front, then undo the escapes.

    Args:
        value: of a cell, or the name of a column; numbers stay unchanged.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    text = printable(value.translate(_ESCAPED))
    return f"'{text}" if text.startswith(_FORMULA) else text
