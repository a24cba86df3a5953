#!/usr/bin/env python3
"""Set up and run the project with nothing but Python 3.11+ and a package index.

    python3 start.py                    the quickstart: train a small model, then test it
    python3 start.py quickstart ARGS    the same, ARGS handed on to cli.py
    python3 start.py test ARGS          run the tests, ARGS handed on to pytest
    python3 start.py lint               ruff, mypy and the documentation site

The first call creates .venv beside this file and installs the versions in constraints.txt
(2-5 minutes and 6 GB with the CUDA build of torch); later calls use it at once, and install
again only what a change of setup.cfg, pyproject.toml or constraints.txt asks for.

Without a GPU, the CPU build of torch saves most of the download:

    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python3 start.py

PIP_INDEX_URL names a mirror of the package index.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  read by the Python that is too old
    sys.exit("start.py: Python 3.11 or newer is needed, this is " + sys.version.split()[0])

from collections.abc import Iterator
from typing import IO

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
STAMP = VENV / "setup.json"
LOG = VENV / "setup.log"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# Two processes; -n 0 for one, as debuggers want. One process runs a whole file, with its fixtures.
TESTS = ["-m", "pytest", "-n", "2", "--dist", "loadfile"]
QUICKSTART = ["cli.py", "fit", "--config", "configs/quickstart.yaml", "--test_after_fit", "true"]
LINT = [
    ["ruff", "check", "."],
    ["ruff", "format", "--check", "."],
    ["mypy"],
    ["mkdocs", "build", "--strict"],  # with --quiet, warnings would be none
]
BIG_DOWNLOAD_MB = 20.0


class SetupError(RuntimeError):
    """The environment cannot be set up; the message says why and what to try."""


def wanted_stamp(dev: bool) -> dict[str, object]:
    """Return what a finished environment is recorded as: which Python, where, from what."""
    inputs = ["setup.cfg", "pyproject.toml", "constraints.txt"]
    digest = hashlib.sha256(b"\0".join((ROOT / name).read_bytes() for name in inputs))
    base = [*sys.version_info[:2], str(VENV)]
    return {"base": base, "inputs": digest.hexdigest(), "dev": dev}


def found_stamp() -> dict[str, object]:
    """Return what the last finished set-up recorded, {} if none finished."""
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) and PYTHON.exists() else {}


def is_ready(dev: bool) -> bool:
    """Say whether the environment is complete; one with the dev tools also serves without."""
    return found_stamp() in (wanted_stamp(dev), wanted_stamp(True))


def try_lock(file: IO[bytes]) -> bool:
    """Lock ``file`` unless another process has; the system unlocks it when a process ends."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415  exists on Windows only

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415  does not exist on Windows

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """Wait until no other process sets up this environment."""
    with (ROOT / ".venv.lock").open("wb") as file:
        os.set_inheritable(file.fileno(), True)  # a pip that outlives this process keeps the lock
        if not try_lock(file):
            print("Another start.py is setting up .venv: waiting for it", flush=True)
            while not try_lock(file):
                time.sleep(1)
        yield


def create_venv() -> None:
    """Create an empty .venv in place of a missing, half-finished or other Python's one.

    Raises:
        SetupError: If this Python cannot create one.
    """
    if Path(sys.prefix) == VENV:
        raise SetupError(".venv must be built anew: run start.py with the python3 outside it")
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise SetupError(
            "this Python comes without venv: install it (Debian, Ubuntu: "
            "sudo apt install python3-venv) and call again"
        )
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    result = subprocess.run(
        command, check=False, capture_output=True, encoding="utf-8", errors="replace"
    )
    if result.returncode != 0:
        said = (result.stderr + result.stdout).strip().splitlines() or ["no message"]
        raise SetupError(f"could not create {VENV}: {said[-1]}")


def progress(line: str) -> str:
    """Return what to show for a line of pip's output, nothing for most."""
    found = re.match(r"\s*(Downloading|Using cached) (\S+?)-\d\S* \((\d{3,}\.?\d* MB)\)", line)
    if found:  # 100 MB or more
        verb, name, size = found.groups()
        return f"  {verb} {name.rpartition('/')[2]} ({size})"
    if line.startswith("Installing collected packages"):
        return f"  Packages to install: {line.count(',') + 1}"
    return ""


def pip_install(dev: bool) -> None:
    """Install the project, editable, with the versions in constraints.txt.

    Raises:
        SetupError: If pip fails.
    """
    command = [str(PYTHON), "-u", "-m", "pip", "install", "--disable-pip-version-check"]
    command += ["--no-input", "--progress-bar", "off", "--constraint", "constraints.txt"]
    command += ["--editable", ".[dev]" if dev else "."]
    pip = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        close_fds=False,  # see only_one
    )
    said = []
    for line in pip.stdout or ():
        said.append(line)
        if progress(line):
            print(progress(line), flush=True)
    LOG.write_text("".join(said), encoding="utf-8")
    if pip.wait() != 0:
        reason = r"^ *(?:ERROR: |(?:[\w.]+\.)?(?=\w+Error: ))(\S.*)"  # pip's, or a traceback's end
        reasons = re.findall(reason, "".join(said), re.MULTILINE) or ["no reason given"]
        raise SetupError(
            f"pip failed: {reasons[-1]} (all it said: {LOG}). Check the network (behind a mirror: "
            "PIP_INDEX_URL) and the disk space (6 GB), then call again"
        )


def set_up(dev: bool) -> None:
    """Make .venv complete, whatever state it is in; return at once when it is.

    Args:
        dev: Install the tools for tests and lint, too.

    Raises:
        SetupError: If that is impossible.
    """
    if is_ready(dev):
        return
    with only_one():
        if is_ready(dev):  # another process was quicker
            return
        start = time.monotonic()
        found, wanted = found_stamp(), wanted_stamp(dev)
        if found.get("base") == wanted["base"]:
            print("Updating .venv: it needs other packages now", flush=True)
            dev = wanted["dev"] = dev or found.get("dev") is True
            STAMP.unlink()  # without it, the next call repairs what this one leaves unfinished
        else:
            print(
                "Setting up .venv: first time only, about 2-5 minutes and 6 GB for the CUDA build "
                "of torch (smaller: python3 start.py --help)",
                flush=True,
            )
            create_venv()
        pip_install(dev)
        STAMP.write_text(json.dumps(wanted), encoding="utf-8")
        print(f"  Done in {time.monotonic() - start:.0f} s", flush=True)


def run(command: list[str]) -> int:
    """Run a command in the environment and the project directory.

    Ctrl-C and SIGTERM are left to the command, which ends in its own way.

    Returns:
        The command's exit code; 128 + n if signal n ended it, as a shell says it.
    """
    # torch's threads otherwise spin while they wait for each other: a little faster on an idle
    # machine, many times slower on a busy one.
    # The theme of the documentation advertises its successor at each build.
    env = {"OMP_WAIT_POLICY": "passive", "NO_MKDOCS_2_WARNING": "1", **os.environ}
    child = subprocess.Popen([str(PYTHON), *command], cwd=ROOT, env=env)
    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),  # the terminal tells both
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: child.terminate()),
    }
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def main(args: list[str]) -> int:
    """Do what the command line asks.

    Args:
        args: The command line without the program's name.

    Returns:
        The exit code.
    """
    if args[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    command, rest = "quickstart", args
    if args and not args[0].startswith("-"):
        command, *rest = args
    if command not in ("quickstart", "test", "lint") or (command == "lint" and rest):
        print(f"start.py: not understood: {' '.join(args)} (see --help)", file=sys.stderr)
        return 2
    try:
        set_up(dev=command != "quickstart")
    except (SetupError, OSError) as error:
        print(f"start.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("start.py: interrupted; call again to finish the set-up", file=sys.stderr)
        return 130
    if command == "lint":
        return max([run(["-m", *tool]) for tool in LINT])
    return run([*QUICKSTART, *rest] if command == "quickstart" else [*TESTS, *rest])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
