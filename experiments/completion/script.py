"""The command ``completion``: a script with which a shell completes the command line.

The script holds a table of all options, so that a Tab starts no Python. The shell itself finds the
runs, checkpoints and YAML files. jsonargparse and shtab also write a script: it knows none of
these, and has 78 MB.
"""

import inspect
from argparse import ArgumentParser
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pytorch_lightning import Trainer

from datamodules import CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule
from experiments.command_line.help import SET_BY_SESSION
from experiments.command_line.interface import parsers
from experiments.command_line.lightning_table import DECISION_TABLES, DEFAULT_ONLY, WORKS
from experiments.command_line.parser_seam import options_of, type_of
from experiments.command_line.shipped_configs import names
from experiments.errors import OneLineParser
from experiments.identity import LEARNING_RATE
from experiments.monitoring.loggers import WandbLogger
from lightning_modules import CNN, MLP, Classifier, FastCNN, FineTuned, NumPyMLP

_SHELLS = ("bash", "zsh", "fish")
_TEMPLATE = Path(__file__).with_name("completion.bash")
_LOGGERS = [f"experiments.{kind}Logger" for kind in ("Wandb", "RunTensorBoard", "RunCSV")]
_WITH_FLAGS_OF_FIT = ("sweep", "find_lr", "find_batch_size")
_CLASSES: dict[str, list[type]] = {
    "data": [CIFAR10DataModule, CIFAR100DataModule, ImageFolderDataModule],
    "model": [MLP, NumPyMLP, CNN, FastCNN, FineTuned, Classifier],
    "trainer": [Trainer],
    "trainer.logger": [WandbLogger],
}
_FISH = """function __cifar10
    set -l found (bash --norc -c '# SCRIPT
COMP_WORDS=("$0" "$@") COMP_CWORD=$# _cifar10_raw=1; _cifar10; printf "%s\\n" "${COMPREPLY[@]}"
' (commandline -opc) (commandline -ct)); or true
    test -n "$found"; and printf "%s\\n" $found; or __fish_complete_path (commandline -ct)
end
complete -c cifar10 -f -a "(__cifar10)"
complete -c python -n "string match -q '*cli.py' (commandline -opc)[2]" -f -a "(__cifar10)"
"""
# The words that may follow each flag, for each command; the empty flag is an argument.
Table = dict[str, dict[str, list[str]]]


def main(args: list[str], programs: Mapping[str, str]) -> None:
    """Prints the script for a shell.

    Args:
        args: arguments without the program's name.
        programs: the modules of the commands that have a parser of their own, by command.
    """
    parser = OneLineParser(prog="cifar10 completion", description="Write a shell's completion.")
    parser.add_argument("shell", choices=_SHELLS)
    shell = parser.parse_args(args).shell
    known: Table = {command: _of_run(parser) for command, parser in parsers().items()}
    known |= {command: _flags(import_module(home).parser()) for command, home in programs.items()}
    for command in _WITH_FLAGS_OF_FIT:
        known[command] = known["fit"] | known[command]
    known["completion"] = _flags(parser)
    script = _bash(known)
    print(_fish(script) if shell == "fish" else script, end="")


def _of_run(parser: ArgumentParser) -> dict[str, list[str]]:
    """The flags of a command on runs, with those of the classes that it builds."""
    values = {
        flag: [] if flag.endswith(".help") else known for flag, known in _flags(parser).items()
    }
    for prefix, kinds in _CLASSES.items():
        for kind in kinds:
            hints = get_type_hints(kind.__init__)  # type: ignore[misc]
            for name in inspect.signature(kind).parameters.keys() - {"args", "kwargs"}:
                values[f"--{prefix}.{name}"] = _words(hints.get(name))
    for name, works in DECISION_TABLES.items():
        values[f"--trainer.{name}"] = [word for word, why in works.items() if why == WORKS]
    values["--trainer.logger"] = [*_LOGGERS, "false"]
    for flag in ("--data", "--model"):
        known = [kind.__name__ for kind in _CLASSES[flag[2:]] if not inspect.isabstract(kind)]
        values |= {flag: known, f"{flag}.help": known}
    values |= {"--ckpt_path": ["best", "last"], f"--{LEARNING_RATE}": []}
    values |= dict.fromkeys(("-c", "--config"), names())
    values |= {flag: values[flag[:-1]] for flag in values if flag.endswith("+")}
    refused = SET_BY_SESSION | {f"trainer.{name}" for name in DEFAULT_ONLY}
    return {flag: values[flag] for flag in sorted(values) if flag[2:] not in refused}


def _flags(parser: ArgumentParser) -> dict[str, list[str]]:
    return {
        flag: [*map(str, option.choices or ())] or _words(type_of(option))
        for option in options_of(parser)
        for flag in option.option_strings or [""]
    }


def _words(kind: Any) -> list[str]:
    """The words that a type allows: those of a literal, and of a switch."""
    if kind is bool:
        return ["true", "false"]
    if isinstance(kind, str):  # of a literal
        return [kind]
    return [word for part in get_args(kind) for word in _words(part)]


def _bash(table: Table) -> str:
    """The script for bash and zsh."""
    before: dict[str, list[str]] = {" ".join([*table, "--help", "--version"]): ["''"]}
    for command, flags in table.items():
        before.setdefault(" ".join(filter(None, flags)), []).append(command)
        for flag, values in flags.items():
            before.setdefault(" ".join(values), []).append(f"'{command} {flag}'")
    before.pop("")
    lines = (f"    {' | '.join(keys)}) reply='{words}' ;;" for words, keys in before.items())
    return _TEMPLATE.read_text(encoding="utf-8").replace("    # TABLE", "\n".join(lines))


def _fish(script: str) -> str:
    """The script for fish, which asks the one for bash."""
    quoted = script.replace("\\", "\\\\").replace("'", "\\'")
    return _FISH.replace("# SCRIPT", quoted)
