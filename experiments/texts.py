"""Text from elsewhere, made fit for where it is shown: a terminal, a spreadsheet."""

import re
import unicodedata
from typing import Any

# Characters that are shown as nothing, though Unicode has them among letters, marks and symbols.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\U000e0100-\U000e01ef]"
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# A backslash starts an escape, a ; parts cells in much of Europe.
_ESCAPED = str.maketrans({"\\": r"\\", ";": r"\x3b"})
# OWASP's list of what begins a formula, full-width forms included; tab and CR are escaped anyway.
_FORMULA = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def printable(text: str) -> str:
    r"""Writes out what a terminal would obey, or not show: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        text: any text; what is printed of it is one line.
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
    """Cuts a text to so many characters, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def csv_cell(value: Any) -> Any:
    r"""Makes a value of a CSV file text that no spreadsheet takes for a formula.

    What begins as a formula (with ``=``, ``+``, ``-`` or ``@``) gets a ``'`` in front, as what
    begins with ``'`` does. What can't be shown is written as in Python (``\t``, ``\x1b``,
    ``\udcff`` for a byte that is no UTF-8), and so are ``\`` and ``;``. To have the text back, take
    a ``'`` off its front, then undo the escapes.

    Args:
        value: of a cell, or the name of a column; numbers are left as they are.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    text = printable(value.translate(_ESCAPED))
    return f"'{text}" if text.startswith(_FORMULA) else text
