"""All that this project takes from private names of argparse and jsonargparse.

No other module of it may use one (`tests/test_architecture.py`), so that here is the one place to
mend when a version changes them; `tests/experiments/command_line/test_parser_seam.py` then says
which. All are in Python 3.11 and in jsonargparse 4.39, the oldest that setup.cfg allows, and in
4.53. Neither has a public way to list what a parser takes.
"""

from argparse import Action, ArgumentParser
from typing import Any

from jsonargparse import DefaultHelpFormatter


def options_of(parser: ArgumentParser) -> list[Action]:
    """The options of a parser, its commands among them.

    Relies on: ``ArgumentParser._actions`` of argparse.
    When it is gone: an AttributeError at the start of every command.
    """
    return parser._actions


def groups_of(parser: ArgumentParser) -> list[tuple[Any, list[Action]]]:
    """The groups of a parser's options, each with these.

    Relies on: ``ArgumentParser._action_groups`` and ``_group_actions`` of each, of argparse.
    When they are gone: an AttributeError in ``--help``.
    """
    return [(group, group._group_actions) for group in parser._action_groups]


def set_option_type(option: Action, kind: Any) -> None:
    """Has an option of a class take another type.

    Relies on: ``ActionTypeHint._typehint`` of jsonargparse. The public way, a Trainer with other
    annotations, would be another class.
    When it is gone: an AttributeError with its name, at the start of every command.
    """
    if not hasattr(option, "_typehint"):
        raise AttributeError(
            f"{option.dest} has no _typehint: see experiments/command_line/parser_seam.py"
        )
    option._typehint = kind


class OpenHelpFormatter(DefaultHelpFormatter):
    """A formatter whose text of an option can be overridden.

    Relies on: ``HelpFormatter._get_help_string(action)`` of argparse, which jsonargparse overrides.
    When it is gone: the help has other texts than ours.
    """

    def text_of(self, option: Action) -> str:
        """The text of an option, before its default and the like are filled in."""
        text: str = super()._get_help_string(option)
        return text

    def _get_help_string(self, action: Action) -> str:
        return self.text_of(action)
