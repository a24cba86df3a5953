"""All uses of private names of argparse and jsonargparse, each behind a function or class.

No other module may use such a name (`tests/test_architecture.py`). If a version changes one,
`tests/experiments/command_line/test_parser_seam.py` names it, and only this module must change. All
exist in Python 3.11, in jsonargparse 4.39, the oldest version that setup.cfg allows, and in 4.53.
Neither library has a public way to list the options of a parser.
"""

import traceback
from argparse import Action, ArgumentParser
from collections.abc import Iterator
from typing import Any

from jsonargparse import DefaultHelpFormatter

from experiments.errors import causes_of


def options_of(parser: ArgumentParser) -> list[Action]:
    """The options of a parser, with its commands.

    Relies on: ``ArgumentParser._actions`` of argparse.
    When it is gone: an AttributeError at the start of every command.
    """
    return parser._actions


def groups_of(parser: ArgumentParser) -> list[tuple[Any, list[Action]]]:
    """The groups of a parser's options, each with its options.

    Relies on: ``ArgumentParser._action_groups`` and ``_group_actions`` of each, of argparse.
    When they are gone: an AttributeError in ``--help``.
    """
    return [(group, group._group_actions) for group in parser._action_groups]


def type_of(option: Action) -> Any:
    """The type of an option that comes from a class or a type hint; None for another option.

    Relies on: ``ActionTypeHint._typehint`` of jsonargparse.
    When it is gone: a shell completes no values of such options.
    """
    return getattr(option, "_typehint", None)


def set_option_type(option: Action, kind: Any) -> None:
    """Changes the type of an option that comes from a class.

    Relies on: ``ActionTypeHint._typehint`` of jsonargparse. The public way would be
    another Trainer class with other annotations.
    When it is gone: an AttributeError with its name, at the start of every command.
    """
    if not hasattr(option, "_typehint"):
        raise AttributeError(
            f"{option.dest} has no _typehint: see experiments/command_line/parser_seam.py"
        )
    option._typehint = kind


def errors_of_types(error: BaseException) -> Iterator[Exception]:
    """Why a value suits none of the types of an option, an error for each; jsonargparse keeps one.

    Relies on: the argument ``exceptions`` of ``raise_union_unexpected_value`` of jsonargparse.
    When it is gone: an error in a callback of the user's own names no file and line.
    """
    for cause in causes_of(error):
        for frame, _ in traceback.walk_tb(cause.__traceback__):
            if frame.f_code.co_name == "raise_union_unexpected_value":
                yield from frame.f_locals.get("exceptions", ())


class OpenHelpFormatter(DefaultHelpFormatter):
    """A help formatter in which subclasses can override the text of an option.

    Relies on: ``HelpFormatter._get_help_string(action)`` of argparse, which jsonargparse overrides.
    When it is gone: the help does not show the texts of this project.
    """

    def text_of(self, option: Action) -> str:
        """The text of an option, before placeholders such as the default are filled in."""
        text: str = super()._get_help_string(option)
        return text

    def _get_help_string(self, action: Action) -> str:
        return self.text_of(action)
