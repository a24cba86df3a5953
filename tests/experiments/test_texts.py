import pytest

from experiments.texts import csv_cell, printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mlp-lr_0.01, ± é 猫 ❤️", "mlp-lr_0.01, ± é 猫 ❤️"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("a\u200bb\ufeffc\u00add", r"a\u200bb\ufeffc\xadd"),
        ("\x9b31m\x85\x7f\u2028", r"\x9b31m\x85\x7f\u2028"),
        ("\ud800\udcff", r"\ud800\udcff"),
        ("\u3164\u2800", r"\u3164\u2800"),  # seen by nobody, and yet a letter and a symbol
        ("\U000e0041", r"\U000e0041"),
        ("a\xa0b\u3000c", "a b c"),
    ],
)
def test_what_a_terminal_would_obey_or_hide_is_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@SUM(1)", "-1+1", "\uff1dcmd", "=HYPERLINK('x')", "-", "-inf"]
)
def test_a_formula_is_text_in_a_spreadsheet(text: str) -> None:
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["\t=1", "\r=1", "\n=1", "\x00=1"])
def test_no_cell_begins_with_a_control_character(text: str) -> None:
    assert csv_cell(text).startswith("\\")


@pytest.mark.parametrize(
    "value", [-1, -0.5, None, True, "-1", "+0.5", "-1e-05", ".5", "3.", "mlp", "a=b", "[-1]", ""]
)
def test_numbers_and_plain_text_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) == value


def test_a_cell_does_not_begin_in_the_midst_of_another() -> None:
    assert csv_cell("a;=b") == r"a\x3b=b"


def test_a_cut_text_says_so() -> None:
    assert (shortened("abcdef", 6), shortened("abcdef", 5)) == ("abcdef", "abcd…")
