"""``cli.py fit`` from Python: arguments in place of flags, and the record of the run."""

from collections.abc import Mapping
from typing import Any

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
    words = [f"--{key}={as_flag(value)}" for key, value in given.items()]
    record = execute(["fit", *(f"--config={name}" for name in configs), *words])
    if record is None:
        raise ValueError("trainer.fast_dev_run keeps no run: call cli.main instead")
    return RunRecord.open(record.path)
