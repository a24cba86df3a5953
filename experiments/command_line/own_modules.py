"""Finds a user's own modules in the working directory, however the command line is started."""

import contextlib
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from experiments.errors import UsageError
from experiments.process.signals import Stopped

# The first part of a dotted name, such as mynet in mynet.MyNet.
_MODULE = re.compile(r"(?<![\w./-])([^\W\d]\w*)(?=\.\w)")


def add_working_directory(texts: Iterable[str]) -> None:
    """Adds the working directory to the module path if a text names a module in it.

    The directory comes last, so that its modules hide no library. Without such a name it is not
    added, so that no library imports a module from it by accident.

    Args:
        texts: arguments and contents of config files, such as ``--model=mynet.MyNet``.
    """
    here = Path.cwd()
    named = {name for text in texts for name in _MODULE.findall(text)}
    if str(here) not in sys.path and any(_is_here(name, here) for name in named):
        sys.path.append(str(here))


def _is_here(name: str, here: Path) -> bool:
    if not (here / f"{name}.py").is_file() and not (here / name).is_dir():
        return False
    return name not in sys.modules and find_spec(name) is None


@contextlib.contextmanager
def refuse_to_end() -> Iterator[None]:
    """Makes an error of a module that ends the program while it is imported.

    Raises:
        UsageError: naming its file.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:  # SystemExit, as of sys.exit(0)
        frames = traceback.extract_tb(error.__traceback__)
        imported = [frame for frame in frames if frame.name == "<module>"]
        if not imported:
            raise
        raise UsageError(
            f"{imported[-1].filename}, line {imported[-1].lineno}, raises {type(error).__name__} "
            "when it is imported: put what is a program under if __name__ == '__main__':"
        ) from None
