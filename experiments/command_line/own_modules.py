"""A user's own modules in the working directory, found however the command line is started."""

import re
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

# The first part of a dotted name, as mynet in mynet.MyNet.
_MODULE = re.compile(r"(?<![\w./-])([^\W\d]\w*)(?=\.\w)")


def add_working_directory(texts: Iterable[str]) -> None:
    """Puts the working directory on the module path if classes of modules in it are named.

    It comes last, so that nothing in it hides a library; without such a name it stays away, so that
    no library finds there what it would like to have.

    Args:
        texts: arguments and config files, as ``--model=mynet.MyNet``.
    """
    here = Path.cwd()
    named = {name for text in texts for name in _MODULE.findall(text)}
    if str(here) not in sys.path and any(_is_here(name, here) for name in named):
        sys.path.append(str(here))


def _is_here(name: str, here: Path) -> bool:
    if not (here / f"{name}.py").is_file() and not (here / name).is_dir():
        return False
    return name not in sys.modules and find_spec(name) is None
