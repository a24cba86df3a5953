"""The few lines a person reads when a command ends."""

import os
import shutil
import sys
from pathlib import Path

from experiments.checkpoints import BEST, LAST
from experiments.record import RunRecord

_NO_VALUE = "-"


def summary_table(record: RunRecord, command: str, seconds: float, predictions: Path) -> str:
    """Formats what a command did, where its files are and what to type next.

    Args:
        record: the run's record.
        command: fit, validate, test or predict.
        seconds: how long the command's main part took.
        predictions: where a prediction went.

    Returns:
        A table of lines, without a newline at its end.
    """
    if command == "predict":
        rows = [("predictions", str(predictions))]
    else:
        rows = [("data", _data(record)), *_results(record)]
    rows += [("time", f"{seconds:.1f} s for {command}"), ("run", str(record.path))]
    rows.append(("W&B", _upload(record)))
    rows += [("look at", _files(record)), ("next", _next(record, command))]
    width = max(len(key) for key, _ in rows)
    lines = [f"  {key:<{width}}  {value}" for key, value in rows if value]
    return "\n".join(["", f"{record.name}: {command} done", *lines])


def _data(record: RunRecord) -> str:
    images = record.fields.get("images", {})
    sizes = " / ".join(f"{count:,} {name}" for name, count in images.items())
    name = {"cifar10": "CIFAR-10", "synthetic": "SYNTHETIC STAND-IN, not CIFAR-10"}
    return f"{name[record.fields['data']]}: {sizes} images"


def _results(record: RunRecord) -> list[tuple[str, str]]:
    summary = record.summary
    rows = []
    if steps := summary.get("train/steps"):
        rate = summary.get("train/images_per_s", 0)
        rows.append(
            (
                "train",
                f"{_figures(record, 'train')}, {steps:,} steps in {summary['train/seconds']:.1f} s "
                f"({rate:,.0f} images/s)",
            )
        )
    if "best/step" in summary:
        best = f"best acc {summary['best/val/acc']:.4f} at step {summary['best/step']:,}"
        rows.append(("val", f"{_figures(record, 'val')}, {best}"))
    if "test/acc" in summary:
        rows.append(("test", f"{_figures(record, 'test')} ({summary.get('test/checkpoint')})"))
    return rows


def _figures(record: RunRecord, stage: str) -> str:
    values = [record.summary.get(f"{stage}/{metric}") for metric in ("acc", "loss")]
    texts = [_NO_VALUE if value is None else f"{value:.4f}" for value in values]
    return f"acc {texts[0]}, loss {texts[1]}"


def _files(record: RunRecord) -> str:
    wanted = ("curves.png", "confusion_test.png", "mistakes_test.png", "record.json")
    return ", ".join(name for name in wanted if (record.path / name).is_file())


def _upload(record: RunRecord) -> str:
    folder = record.path / "wandb"
    if not any(folder.glob("offline-run-*")):
        return ""
    return f"offline; upload with: {_python()} -m wandb sync {folder}/offline-run-*"


def _python() -> str:
    """What to type for this Python: its path where ``python`` is another one."""
    found = shutil.which("python")
    return "python" if found == sys.executable else os.path.relpath(sys.executable)


def _next(record: RunRecord, command: str) -> str:
    where = f" --runs_dir {record.path.parent}" if str(record.path.parent) != "runs" else ""
    following = "predict" if "test/acc" in record.summary else "test"
    which = "" if (record.path / f"{BEST}.ckpt").is_file() else f" --ckpt_path {LAST}"
    return f"{_python()} cli.py {following} --name {record.name}{where}{which}"
