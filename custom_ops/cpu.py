"""Builds the CPU kernels, the C++ files of `SOURCES`, at their first use, and loads them.

Each library is kept in ``cifar10-lightning`` in the user's cache directory. Its name depends on
source, PyTorch, compiler, flags and processor, so several versions and machines can share a home,
and processes that start together build it once. Loading the library runs its code, so only the user
and root may have written it: the folder has mode 0700, and a folder of another user, or one that
others may write to, is refused.

Without a compiler, PyTorch's own operators compute everything, only slower. Environment variables:

- ``CXX``: the compiler, GCC 11 or later or Clang; default: c++, g++ or clang++ from the PATH.
- ``CUSTOM_OPS_ISA``: compiler flags instead of ``-march=native``, such as ``-mavx2 -mfma -mf16c``.
- ``CUSTOM_OPS_NO_KERNEL``: 1 neither builds nor loads.
- ``XDG_CACHE_HOME``: the cache directory; default: ``~/.cache``.

To build ahead: ``python -m custom_ops.cpu``.
"""

import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = {
    name: Path(__file__).parent / name / f"{name}.cpp"
    for name in ("layer_norm", "convolution", "batch_norm")
}
_HEADER = Path(__file__).parent / "vectors.h"
_COMPILERS = ("c++", "g++", "clang++")
_TORCH = Path(torch.__file__).parent


class BuildError(RuntimeError):
    """The kernels cannot be built; the message has the reason and the remedy in one line."""


def load(name: str) -> bool:
    """Builds kernels if necessary, loads them into `torch.ops.custom_ops`; warns on failure.

    Args:
        name: a key of `SOURCES`.

    Returns:
        Whether the kernels now compute CPU tensors.
    """
    if os.environ.get("CUSTOM_OPS_NO_KERNEL", "0") not in ("", "0"):
        return False
    try:
        torch.ops.load_library(str(build(name)))  # type: ignore[no-untyped-call]
    except Exception as error:  # after any error, PyTorch still computes
        reason = " ".join(str(error.__cause__ or error).split())
        warnings.warn(
            f"{name} goes without its CPU kernel, slower: {reason} "
            "(CUSTOM_OPS_NO_KERNEL=1 does so silently)",
            stacklevel=2,
        )
        return False
    return True


def build(name: str) -> Path:
    """Compiles kernels, unless the cache has them.

    Args:
        name: a key of `SOURCES`.

    Returns:
        The library.

    Raises:
        BuildError: there is no compiler, or it fails, or others may write to the cache directory.
        OSError: the cache directory cannot be written to.
    """
    compiler = _compiler()
    flags = compiler_flags()
    library = _private_cache() / f"{name}-{_key(SOURCES[name], compiler, flags)}.so"
    if _whole(library):
        return library
    with FileLock(f"{library}.lock"):
        if not _whole(library):  # another process may have built it in the meantime
            print(f"Building the CPU kernel of {name}, once, about 20 s ...", file=sys.stderr)
            _compile(SOURCES[name], compiler, flags, library)
    return library


def compiler_flags() -> list[str]:
    """The compiler flags of the kernels."""
    native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
    return [
        "-O3",
        *shlex.split(os.environ.get("CUSTOM_OPS_ISA", native)),
        "-std=c++20",
        # These flags change only errno and floating-point exceptions, which no code reads.
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
        *(() if sys.platform == "darwin" else ("-fopenmp",)),  # Apple's compiler lacks it
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        "-Wno-psabi",
    ]


def _compiler() -> list[str]:
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in _COMPILERS]:
        if shutil.which(command[0]):
            return command
    if chosen:
        raise BuildError(f"CXX={shlex.join(chosen)} is not found: correct it or unset it")
    raise BuildError("no C++ compiler is found: install g++ or clang++, or set CXX")


def _private_cache() -> Path:
    """The folder of the libraries, created if missing; refused if others may write to it."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root, "cifar10-lightning").expanduser()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _written_by_us_alone(folder.stat()):
        raise BuildError(
            f"{folder} is another user's, or others may write to it: delete it, or set "
            "XDG_CACHE_HOME to a directory of your own"
        )
    return folder


def _written_by_us_alone(status: os.stat_result) -> bool:
    """Whether only the user and root can have written it."""
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _key(source: Path, compiler: list[str], flags: list[str]) -> str:
    """A digest of everything that the library depends on."""
    version = subprocess.run(
        [*compiler, "--version"],
        capture_output=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    parts = (
        source.read_text(encoding="utf-8"),
        _HEADER.read_text(encoding="utf-8"),
        torch.__version__,
        version.stdout,
        *flags,
        _processor(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor and its features, for -march=native."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    features = (line for line in lines if line.startswith(("flags", "Features")))
    return platform.machine() + next(features, platform.processor())


def _digest(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _whole(library: Path) -> bool:
    """Whether the library is complete and ours: loading half a file may crash."""
    try:
        status = library.lstat()  # this project creates no links here
        if not (stat.S_ISREG(status.st_mode) and _written_by_us_alone(status)):
            return False
        written = _digest(library).read_text(encoding="utf-8")
        return written == hashlib.sha256(library.read_bytes()).hexdigest()
    except OSError:
        return False


def _compile(source: Path, compiler: list[str], flags: list[str], library: Path) -> None:
    draft, log = library.with_suffix(".draft"), library.with_suffix(".log")
    for path in (draft, log, _digest(library)):  # never write through another user's file
        path.unlink(missing_ok=True)
    paths = ["-shared", "-fPIC", f"-isystem{_TORCH / 'include'}", f"-L{_TORCH / 'lib'}"]
    command = [*compiler, *flags, *paths, str(source), "-o", str(draft), "-ltorch_cpu", "-lc10"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=600,
            encoding="utf-8",
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{compiler[0]} does not run: {error}") from error
    if done.returncode:
        log.write_text(f"{shlex.join(command)}\n{done.stdout}{done.stderr}", encoding="utf-8")
        raise BuildError(f"{compiler[0]} fails, see {log}: try another compiler with CXX")
    draft.chmod(0o700)  # the umask may let a group write
    _digest(library).write_text(hashlib.sha256(draft.read_bytes()).hexdigest(), encoding="utf-8")
    draft.replace(library)


def main() -> None:
    """Builds all kernels, and prints their paths and how they were built."""
    try:
        for name in SOURCES:
            print(build(name))
    except (BuildError, OSError) as error:
        sys.exit(f"error: {error}")
    print("Flags:", shlex.join(compiler_flags()))


if __name__ == "__main__":
    main()
