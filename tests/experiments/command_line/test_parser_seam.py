"""argparse and jsonargparse still have the private names that `parser_seam` needs."""

import platform
from argparse import Action, ArgumentParser
from importlib.metadata import version

import pytest
from jsonargparse import ArgumentParser as TypedParser

from experiments.command_line.parser_seam import (
    OpenHelpFormatter,
    groups_of,
    options_of,
    set_option_type,
    type_of,
)


def gone(item: str, what: str) -> str:
    """What a test says of an item that a version has changed."""
    return (
        f"Python {platform.python_version()}, jsonargparse {version('jsonargparse')}: {what} is "
        f"not as experiments/command_line/parser_seam.py needs it: see {item} there"
    )


class Limits:
    """Has an option of a type that is to be another."""

    def __init__(self, batches: float | int = 1.0) -> None:
        self.batches = batches


def typed() -> TypedParser:
    """A parser with an option, a group and a class."""
    parser = TypedParser(exit_on_error=False, formatter_class=OpenHelpFormatter)
    parser.add_argument("--plain", type=int, default=3, help="A number.")
    parser.add_argument_group("Some").add_argument("--grouped", type=str)
    parser.add_class_arguments(Limits, "limits")
    return parser


def test_options_of() -> None:
    message = gone("options_of", "ArgumentParser._actions")
    plain = ArgumentParser()
    plain.add_argument("--plain")
    commands = plain.add_subparsers(dest="command")
    commands.add_parser("fit").add_argument("--inner")
    assert [option.dest for option in options_of(plain)] == ["help", "plain", "command"], message
    assert {"plain", "grouped", "limits.batches"} <= {o.dest for o in options_of(typed())}, message


def test_groups_of() -> None:
    message = gone("groups_of", "ArgumentParser._action_groups")
    found = {group.title: [o.dest for o in options] for group, options in groups_of(typed())}
    assert found["Some"] == ["grouped"], message
    assert any("limits.batches" in options for options in found.values()), message


def test_type_of() -> None:
    message = gone("type_of", "ActionTypeHint._typehint")
    found = {option.dest: type_of(option) for option in options_of(typed())}
    assert found["limits.batches"] == float | int, message
    assert type_of(Action([], "plain")) is None, message


def test_take_as() -> None:
    message = gone("set_option_type", "ActionTypeHint._typehint")
    parser = typed()
    (option,) = (o for o in options_of(parser) if o.dest == "limits.batches")
    set_option_type(option, int | float | None)
    for given, taken in (("1", int), ("0.5", float), ("null", type(None))):
        parsed = parser.parse_args([f"--limits.batches={given}"])
        assert type(parsed.limits.batches) is taken, message
    with pytest.raises(AttributeError, match="see experiments/command_line/parser_seam"):
        set_option_type(options_of(ArgumentParser())[0], int)


class Shouting(OpenHelpFormatter):
    """Writes one option's text in capitals."""

    def text_of(self, option: Action) -> str:
        text = super().text_of(option)
        return text.upper() if option.dest == "plain" else text


def test_help_formatter() -> None:
    message = gone("OpenHelpFormatter", "HelpFormatter._get_help_string")
    parser = typed()
    assert "A number." in parser.format_help(), message
    parser.formatter_class = Shouting
    assert "A NUMBER." in parser.format_help(), message
