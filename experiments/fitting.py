"""``cli.py fit`` from Python: arguments in place of flags, and the record of the run."""

import os
from collections.abc import Mapping
from typing import Any

from experiments.errors import UsageError
from experiments.identity import as_flag
from experiments.records.record import RunRecord


def fit(*configs: str, flags: Mapping[str, Any] | None = None, **options: Any) -> RunRecord:
    """Trains as ``cli.py fit`` does: with record, checkpoints, W&B and exact resume.

        >>> from experiments import fit
        >>> run = fit("mlp", name="my-mlp", test_after_fit=True)
        >>> run.summary["test/acc"]
        0.4879

    Args:
        *configs: names of configs or YAML files, as after ``--config``.
        flags: other flags by their keys, such as ``{"trainer.max_steps": 100}``.
        **options: flags without a dot, such as ``name``, ``resume`` or ``seed_everything``.

    Returns:
        The record of the run.

    Raises:
        UsageError: for a flag or a value that is wrong; the message is one line.
        RunError: if the run can't be trained as asked.
        FloatingPointError: if the training diverges.
        ValueError: for Lightning's ``fast_dev_run``, which keeps no run.
    """
    from experiments.command_line.interface import execute  # noqa: PLC0415 - takes seconds

    given = {**options, **(flags or {})}
    words = [_word(key, value) for key, value in given.items()]
    record = execute(["fit", *(f"--config={name}" for name in configs), *words])
    if record is None:
        raise ValueError("trainer.fast_dev_run keeps no run: call cli.main instead")
    return RunRecord.open(record.path)


def _word(key: str, value: Any) -> str:
    """A flag as on the command line."""
    if key.startswith("-"):
        raise UsageError(f"flags: keys have no dashes: write {key.lstrip('-')!r} for {key!r}")
    if isinstance(value, type):
        path = f"{value.__module__}.{value.__qualname__}"
        raise UsageError(f"{key}: pass the name of the class as text, {path!r}")
    try:
        return f"--{key}={as_flag(os.fspath(value) if isinstance(value, os.PathLike) else value)}"
    except TypeError as error:
        kind = type(value).__name__
        raise UsageError(f"{key}: expected text, a number, a list or a dict, got {kind}") from error
