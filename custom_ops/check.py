"""Checks gradients that you have derived by hand: ``python -m custom_ops.check my_ops.py``.

    python -m custom_ops.check --write my_ops.py    # exercises with empty bodies
    python -m custom_ops.check my_ops.py            # what is right, and which term is wrong

It takes the classes of the file by their names: those of the exercises, those of `custom_ops`, and
those of the course's practicals (LinearModule, ELUModule, SoftMaxModule, CrossEntropyModule,
CustomLayerNormManualFunction ...). Layers in NumPy have `forward` and `backward`, with their
parameters in `params` and `grads` or as `weight`, `bias`, `grad_weight`, `grad_bias`; others are
`torch.autograd.Function`s. All is computed in float64. Status 0: all is right; 1: something is not.
"""

import argparse
import dataclasses
import difflib
import importlib.util
import shutil
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
from torch.autograd import Function

from custom_ops.faults import EXERCISES, SAMPLES, Array, Arrays, ChangedInputError, Exercise

_TOLERANCE = 1e-7


# ---- judging -------------------------------------------------------------------------------------


def verdict(exercise: Exercise, quantity: str, found: Any) -> str:
    """What is wrong with a result; empty if it is right.

    Args:
        exercise: what was computed.
        quantity: which of its results, such as ``dL/dX``.
        found: what came out.
    """
    expected = exercise.expected[quantity]
    if found is None:
        return "nothing is returned"
    try:
        given = found.detach() if isinstance(found, torch.Tensor) else found
        ours = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        return f"it is a {type(found).__name__}, not an array of shape {expected.shape}"
    if _same(ours, expected):
        return ""
    known = (
        text for name, text, wrong in exercise.faults if name == quantity and _same(ours, wrong)
    )
    if reason := next(known, None) or _general(ours, expected):
        return reason
    if ours.shape != expected.shape:
        return f"it has the shape {ours.shape}, and should have {expected.shape}"
    if not np.isfinite(ours).all():
        return f"{int((~np.isfinite(ours)).sum())} of {ours.size} values are not finite"
    gap = np.abs(ours - expected)
    worst = tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
    wrong_ones = int((gap > _TOLERANCE * np.abs(expected).max()).sum())
    places = 6 if gap.max() > 1e-5 * np.abs(expected[worst]) else 12
    return (
        f"{wrong_ones} of {ours.size} values differ, by up to {gap.max():.3g}: at {worst} it is "
        f"{ours[worst]:.{places}g}, and should be {expected[worst]:.{places}g}"
    )


def _same(ours: Array, other: Array) -> bool:
    if ours.shape != other.shape or not np.isfinite(ours).all():
        return False
    return bool(np.abs(ours - other).max() <= _TOLERANCE * np.abs(other).max())


def _general(ours: Array, expected: Array) -> str | None:
    """Faults that any result may have: transposed, a constant factor, a sum for a mean."""
    if expected.ndim == 2 and _same(ours, expected.T):
        return f"it is transposed: {ours.shape}, and should be {expected.shape}"
    if ours.shape != expected.shape or not np.isfinite(ours).all():
        return None
    if not ours.any():
        return "it is zero everywhere"
    factor = float((ours * expected).sum() / (expected**2).sum())
    if not _same(ours, factor * expected):
        return None
    factors = {
        -1.0: "its sign is wrong",
        1 / SAMPLES: "it is divided by the number of samples once too often (a mean for a sum)",
        float(SAMPLES): "it is not divided by the number of samples (a sum for a mean)",
        -float(SAMPLES): "its sign is wrong, and it is not divided by the number of samples",
    }
    near = next((text for k, text in factors.items() if abs(factor - k) < 1e-6), None)
    return near or f"it is {factor:.9g} times what it should be"


def check(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Checks the operators of a module.

    Args:
        module: with classes of known names.

    Yields:
        Operator and class, which of its results, and what is wrong with it, empty if nothing is.
    """
    file = getattr(module, "__file__", None)
    for name, kind in [*vars(module).items()]:  # a warning adds a name to it
        if not isinstance(kind, type) or kind.__module__.partition(".")[0] == "torch":
            continue
        for exercise in EXERCISES:
            if name in exercise.names:
                yield from _check_class(exercise, name, kind, file)


def _check_class(
    exercise: Exercise, name: str, kind: type, file: str | None
) -> Iterator[tuple[str, str, str]]:
    title = exercise.name if name == exercise.name else f"{exercise.name} ({name})"
    run: Any = exercise.of_function if issubclass(kind, Function) else exercise.of_layer
    found, failed = _results(run, kind, exercise.inputs, file)
    verdicts = [(quantity, verdict(exercise, quantity, result)) for quantity, result in found]
    for quantity, wrong in verdicts:
        yield title, quantity, wrong
    if failed:
        yield title, "backward" if found else "", failed
    if failed or any(wrong for _, wrong in verdicts):
        return
    for again in exercise.more:
        run = again.of_function if issubclass(kind, Function) else again.of_layer
        if run is None:
            continue
        found, failed = _results(run, kind, again.inputs, file)
        ideal = dataclasses.replace(exercise, expected=again.expected, faults=[])
        right = not any(verdict(ideal, quantity, result) for quantity, result in found)
        if found or failed:
            yield title, again.name, failed or ("" if right else again.reason)


def _results(
    run: Any, kind: type, inputs: Arrays, file: str | None
) -> tuple[list[tuple[str, Any]], str]:
    """What a class computes until an error, and that error; empty if there is none."""
    found: list[tuple[str, Any]] = []
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.extend(run(kind, inputs))  # keeps what came before an error
    except NotImplementedError:
        return found, "not filled in yet"
    except ChangedInputError as error:
        return found, str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a student's code raises
        return found, f"it raises {_line(error, file)}"
    return found, ""


# ---- the command ---------------------------------------------------------------------------------


def main(args: list[str] | None = None) -> None:
    """Checks a file, or writes one to work in.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m custom_ops.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a Python file with the operators")
    parser.add_argument("--write", action="store_true", help="write the exercises to that file")
    options = parser.parse_args(args)
    if options.write:
        _write(options.file)
        return
    module = _load(options.file)
    known = sorted(name for exercise in EXERCISES for name in exercise.names)
    results = list(check(module))
    if not results:
        _fail(f"{options.file} has no class of a known name: {', '.join(known)}")
    for title in dict.fromkeys(title for title, *_ in results):
        print(title)
        for _, quantity, wrong in (result for result in results if result[0] == title):
            print(f"  {quantity or 'all':8} {wrong or 'right'}")
    for name, kind in vars(module).items():
        is_own = isinstance(kind, type) and kind.__module__ == module.__name__
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.87)
        if is_own and name not in known and near:
            print(f"{name} is not checked: did you mean {near[0]}?")
    right = sum(not wrong for *_, wrong in results)
    print(f"{right} of {len(results)} right")
    raise SystemExit(0 if right == len(results) else 1)


def _write(path: Path) -> None:
    if path.exists():
        _fail(f"{path} exists: name another file")
    try:
        shutil.copyfile(Path(__file__).with_name("exercises.py"), path)
    except OSError as error:
        _fail(f"{path} can't be written: {error.strerror}")
    print(f"wrote {path}: fill in what raises, then python -m custom_ops.check {path}")


def _load(path: Path) -> ModuleType:
    """Runs a file as a module."""
    if not path.is_file():
        _fail(f"{path} does not exist: python -m custom_ops.check --write {path} writes exercises")
    spec = importlib.util.spec_from_file_location("my_ops", path)
    if spec is None or spec.loader is None:
        _fail(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as python does for a program
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever a student's file raises
        _fail(f"{path} can't be run: {_line(error, spec.origin)}")
    return module


def _line(error: BaseException, file: str | None) -> str:
    """An error in one line, with the innermost line of a file that it comes from."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == file]
    if own and not isinstance(error, SyntaxError):  # a SyntaxError names its own line
        text += f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})"
    # A terminal would obey some characters.
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
