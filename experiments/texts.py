"""Text from elsewhere, made fit for where it is shown: a terminal, a spreadsheet."""

import re
import unicodedata
from typing import Any

# Characters that are shown as nothing, though Unicode has them among letters, marks and symbols.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\U000e0100-\U000e01ef]"
)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)
# What a spreadsheet takes for a formula at the start of a cell, and what may begin a cell.
_FORMULA = re.compile(r"^(?=[=+\-@\uff1d\uff0b\uff0d\uff20])|(?<=;)(?=[=+\-@])")


def printable(text: str) -> str:
    r"""Writes out what a terminal would obey, or not show: ``\x1b``, ``\n``, ``\u202e``.

    Args:
        text: any text; what is printed of it is one line.
    """
    if text.isprintable() and not _UNSEEN.search(text):
        return text
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    if unicodedata.category(character) == "Zs":
        return " "
    if character.isprintable() and not _UNSEEN.match(character):
        return character
    return character.encode("unicode_escape").decode()


def shortened(text: str, most: int) -> str:
    """Cuts a text to so many characters, the last of them an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def csv_cell(value: Any) -> Any:
    """Makes a value of a CSV file text that no spreadsheet takes for a formula.

    Args:
        value: of a cell, or the name of a column; numbers are left as they are.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub("'", printable(value))
