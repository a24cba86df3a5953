"""The summary at the end of a command."""

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.files import CIFAR10, CIFAR100
from experiments.checkpoints.evaluations import Evaluation
from experiments.checkpoints.loading import BEST, LAST
from experiments.records.curves import CHOSEN_BY
from experiments.records.record import RunRecord
from experiments.texts import decimals, printable

_NO_VALUE = "-"
_SETS = {"test": "test", "validate": "val"}  # the set of images of each command
_DATA = {
    **{official.source: official.name for official in (CIFAR10, CIFAR100)},
    **{kind.stand_in: f"SYNTHETIC STAND-IN, not {kind.name}" for kind in (CIFAR10, CIFAR100)},
}


def summary_table(
    record: RunRecord,
    command: str,
    seconds: float,
    evaluation: Evaluation | None,
    logs: Sequence[Path] = (),
) -> str:
    """Formats the results of a command, its files and the next command.

    Args:
        record: the run's record.
        command: fit, validate, test or predict.
        seconds: how long the command's main part took.
        evaluation: the evaluation of the command; None for a fit.
        logs: folders of the loggers that write files for other tools.

    Returns:
        A table, without a newline at its end.
    """
    if evaluation is not None and command == "predict":
        rows = [("predictions", _predictions(record, evaluation))]
    else:
        rows = [("data", _data(record)), *_results(record)]
    if evaluation is not None and not evaluation.belongs_to_run:
        rows += _aside(record, evaluation)
    rows.append(("stopped", record.fields.get("stopped_by", "") if command == "fit" else ""))
    rows += [("time", f"{seconds:.1f} s for {command}"), ("run", str(record.path))]
    rows += [("W&B", _upload(record)), ("logs", ", ".join(map(str, logs)))]
    rows += [("look at", _files(record, command)), ("next", _next(record, command))]
    width = max(len(key) for key, _ in rows)
    lines = [f"  {key:<{width}}  {printable(value)}" for key, value in rows if value]
    return "\n".join(["", f"{printable(record.name)}: {command} done", *lines])


def _predictions(record: RunRecord, evaluation: Evaluation) -> str:
    path = evaluation.predictions(record)
    entry = record.evaluations[path.name]
    count, whole = entry["images"], entry["whole"]
    part = f"only {count:,} of {whole:,}" if count < whole else f"{count:,}"
    return f"{path} ({entry['checkpoint']}, {part} images)"


def _aside(record: RunRecord, evaluation: Evaluation) -> list[tuple[str, str]]:
    """Figures that do not belong to the run, and the reason."""
    entry = record.evaluations[evaluation.key(record)]
    reasons = [f"{key} {_difference(value)}" for key, value in evaluation.differs.items()]
    rows = [("kept separately", f"not the run's own figures: {'; '.join(reasons)}")]
    if "acc" in entry:
        figures = f"acc {_number(entry['acc'])}, loss {_number(entry['loss'])}"
        whole = (record.fields.get("images") or {}).get(_SETS[evaluation.stage])
        part = _part(entry["images"], whole) or f", {entry['images']:,} images"
        rows.insert(0, (evaluation.stage, f"{figures} ({entry['checkpoint']}{part})"))
    return rows


def _difference(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        return f"{value[1]} (the run: {value[0]})"
    return f"of {value}"


def _data(record: RunRecord) -> str:
    images = {name: count or 0 for name, count in (record.fields.get("images") or {}).items()}
    used = {name: record.summary.get(f"{name}/images") or count for name, count in images.items()}
    sizes = " / ".join(
        f"{count:,} {name}" if used[name] == count else f"{used[name]:,} of {count:,} {name}"
        for name, count in images.items()
    )
    name = str(record.fields["data"])
    return f"{_DATA.get(name, name)}: {sizes} images"


def _results(record: RunRecord) -> list[tuple[str, str]]:
    summary = record.summary
    rows = []
    if steps := summary.get("train/steps"):
        rate, seconds = (summary.get(f"train/{name}") or 0 for name in ("images_per_s", "seconds"))
        rows.append(
            (
                "train",
                f"{_figures(record, 'train')}, {steps:,} steps in {seconds:.1f} s "
                f"({rate:,.0f} images/s)",
            )
        )
    if (step := summary.get("best/step")) is not None:
        best = f"best acc {_number(summary.get(f'best/{CHOSEN_BY}'))} at step {step:,}"
        rows.append(("val", f"{_figures(record, 'val')}, {best}"))
    rows += [
        (stage, f"{_figures(record, stage)} ({_evaluated_weights(record, stage)})")
        for stage in ("validate", "test")
        if f"{stage}/loss" in summary
    ]
    return rows


def _evaluated_weights(record: RunRecord, stage: str) -> str:
    """The evaluated weights, and the number of images if not all were evaluated."""
    images = record.summary.get(f"{stage}/images")
    whole = (record.fields.get("images") or {}).get(_SETS[stage])
    return f"{record.summary.get(f'{stage}/checkpoint')}{_part(images, whole)}"


def _part(images: int | None, whole: int | None) -> str:
    if images is None or whole is None or images == whole:
        return ""
    return f", only {images:,} of {whole:,} images"


def _figures(record: RunRecord, stage: str) -> str:
    values = [record.summary.get(f"{stage}/{metric}") for metric in ("acc", "loss")]
    return f"acc {_number(values[0])}, loss {_number(values[1])}"


def _number(value: float | None) -> str:
    return _NO_VALUE if value is None else decimals(value)


def _files(record: RunRecord, command: str) -> str:
    tested = "test/acc" in record.summary and command != "validate"
    stage = "test" if tested else {"fit": "val"}.get(command, command)
    wanted = ("curves.png", f"confusion_{stage}.png", "mistakes_test.png", "record.json")
    return ", ".join(name for name in wanted if (record.path / name).is_file())


def _upload(record: RunRecord) -> str:
    if not any((record.path / "wandb").glob("offline-run-*")):
        return ""
    return f"offline; upload with: {upload_command(record)}"


def upload_command(record: RunRecord) -> str:
    """The command that uploads the offline files of a run."""
    where = shlex.quote(str(record.path / "wandb"))
    return f"{python()} -m wandb sync {where}/offline-run-*"


def python() -> str:
    """The name of this Python on a command line: its path if ``python`` is another one."""
    if shutil.which("python") == sys.executable:
        return "python"
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path


def _next(record: RunRecord, command: str) -> str:
    """The next evaluation of a run, if it has weights for one."""
    missing = "predict" if "test/acc" in record.summary else "test"
    kept = [name for name in (BEST, LAST) if (record.path / f"{name}.ckpt").is_file()]
    if not kept or command == "predict":
        return ""
    arguments = [missing, "--name", record.name]
    if str(record.path.parent) != "runs":
        arguments += ["--runs_dir", str(record.path.parent)]
    if BEST not in kept:
        arguments += ["--ckpt_path", LAST]
    return f"{program()} {shlex.join(arguments)}"


def show(text: str) -> None:
    """Prints to standard output, and ignores errors of the output."""
    try:
        print(text, flush=True)
    except OSError:  # a closed pipe, a full disk; Python would try again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def program() -> str:
    """The name of this program on a command line, as it was started."""
    typed = Path(sys.argv[0])
    if typed.name == "cifar10":
        return "cifar10"
    return f"{python()} {shlex.quote(str(typed)) if typed.name == 'cli.py' else 'cli.py'}"
