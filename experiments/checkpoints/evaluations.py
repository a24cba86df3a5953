"""Links an evaluation to its weights, images and settings.

An evaluation belongs to the run if it uses a checkpoint of the run's fit and the run's settings.
Its figures are then in the record's summary, which comparisons use. The figures of every other
evaluation are kept separately, under another name: they must not replace the figures of the run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from datamodules import CIFAR10DataModule
from experiments.checkpoints.loading import BEST, LAST, checkpoint_sha256, find_checkpoint
from experiments.errors import RunError
from experiments.identity import kind_of
from experiments.records.files import file_identity, is_in_folder
from experiments.records.log import EVALUATED
from experiments.records.record import RECORD, RunRecord

Stage = Literal["validate", "test", "predict"]

_FILES = {
    "test": ("confusion_test.png", "confusion_test.json", "mistakes_test.png"),
    "validate": ("confusion_validate.png", "confusion_validate.json"),
}
OTHER_WEIGHTS = "weights"  # key in ``differs`` for weights that do not belong to the run


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of a checkpoint in a run.

    Attributes:
        stage: the command.
        checkpoint: the checkpoint's file.
        weights_sha256: hash of its weights.
        step: optimiser steps of the checkpoint.
        differs: different settings by key, each as ``[of the run, of the evaluation]``.
        folder: the folder of images to predict; None for the test set.
        identity: identity of the file when its weights were hashed (see `file_identity`); empty
            if no other process can have replaced the file.
    """

    stage: Stage
    checkpoint: Path
    weights_sha256: str
    step: int
    differs: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    identity: tuple[int, ...] = ()

    def check_weights(self) -> None:
        """Refuses to continue if the command may have read other weights than the hashed ones.

        Raises:
            RunError: if another process has replaced the file.
        """
        if self.identity and file_identity(self.checkpoint) != self.identity:
            raise RunError(f"{self.checkpoint} was replaced while it was read: try again")

    @property
    def belongs_to_run(self) -> bool:
        """Whether its figures belong to the run."""
        return not self.differs

    @property
    def tag(self) -> str:
        """The suffix of its files' names; empty if it belongs to the run."""
        return "" if self.belongs_to_run else _tag(self.weights_sha256, self.differs)

    def file(self, record: RunRecord) -> str:
        """The name of the checkpoint, with its path if it is outside the run."""
        inside = is_in_folder(self.checkpoint, record.path)
        return self.checkpoint.name if inside else str(self.checkpoint)

    def facts(self, record: RunRecord) -> dict[str, Any]:
        """Its entry in the record, without its figures."""
        facts: dict[str, Any] = {
            "checkpoint": self.file(record),
            "weights_sha256": self.weights_sha256,
            "step": self.step,
            "differs": dict(self.differs),
        }
        return facts | ({"folder": str(self.folder)} if self.folder else {})

    def note(self, record: RunRecord, figures: Mapping[str, Any]) -> None:
        """Writes figures into the record: into its summary, or separately (see `belongs_to_run`).

        Args:
            record: the run's record; not saved here.
            figures: by name, without the stage: ``acc``, ``images``.
        """
        entry = self.facts(record) | {"images": figures["images"]}
        summary: dict[str, Any] = {}
        if self.belongs_to_run and self.stage != "predict":
            figures = {**figures, "checkpoint": self.checkpoint.name}
            summary = {f"{self.stage}/{name}": value for name, value in figures.items()}
        else:
            entry |= figures
        record.note_evaluation(self.key(record), entry, summary)

    def log(self, record: RunRecord) -> None:
        """Adds figures that belong to the run to its log."""
        of_stage = f"{self.stage}/"
        figures = {k: v for k, v in record.summary.items() if k.startswith(of_stage)}
        figures = {k: v for k, v in figures.items() if isinstance(v, float) or v is None}
        if figures:
            record.log(figures, self.step)

    def key(self, record: RunRecord) -> str:
        """Its key in the record's ``evaluations``: command and tag, or the file of a prediction."""
        if self.stage == "predict":
            return self.predictions(record).name
        return f"{self.stage}{self.tag}"

    def predictions(self, record: RunRecord) -> Path:
        """The file for its predictions: a different one for each folder and other weights."""
        base = "predictions" + (f"-{self.folder.name}" if self.folder else "")
        known = record.evaluations.get(f"{base}.csv", {})
        if self.folder and known.get("folder", str(self.folder)) != str(self.folder):
            base += f"-{_digest(str(self.folder))}"
        return record.path / f"{base}{self.tag}.csv"


def differences(
    stage: Stage, ours: Mapping[str, Any], runs: Mapping[str, Any], batches: int
) -> dict[str, Any]:
    """The settings of an evaluation that differ from the run's and change its figures.

    Args:
        stage: the command.
        ours: its configuration, flat.
        runs: the configuration of the run, flat; empty if the run is only this evaluation.
        batches: total number of batches.
    """
    found = {
        key: [runs.get(key), ours.get(key)]
        for key in sorted({*ours, *runs} if runs else ())
        if ours.get(key) != runs.get(key)
        and (kind_of(key).figures or (stage == "validate" and kind_of(key).validation))
        and not key.startswith(("trainer.limit_", "trainer.overfit_"))  # they are counted below
    }
    key = f"trainer.{limit_of(stage)}"
    if runs and is_limited(ours.get(key), batches) and ours.get(key) != runs.get(key):
        found[key] = [runs.get(key), ours.get(key)]
    return found


def check_drawn(data: CIFAR10DataModule, part: Literal["val", "test"]) -> None:
    """Refuses images that are drawn anew from other pictures than those of the run.

    Args:
        data: with other pictures.
        part: the images to evaluate.

    Raises:
        RunError: if they are drawn from the same pictures as the training images.
    """
    if data.draws(part):
        raise RunError(
            f"{data.data_dir} has other pictures than those of the run. The {part} images are "
            "drawn from them, so some were trained on: bring the pictures back, or name with "
            f"--data.data_dir a folder with train/ and {part}/"
        )


def limit_of(stage: Stage) -> str:
    """The trainer's option that limits the images of a command."""
    return f"limit_{'val' if stage == 'validate' else stage}_batches"


def is_limited(limit: float | None, batches: int) -> bool:
    """Whether a limit of Lightning leaves out some of the batches."""
    if limit is None:
        return False
    return limit < 1 if isinstance(limit, float) else limit < batches


def chosen_checkpoint(record: RunRecord) -> str:
    """Name of the default checkpoint for evaluations of a run."""
    return LAST if record.fields.get("chosen") == LAST else BEST


def checkpoint_of(source: Path, runs_dir: Path = Path("runs")) -> Path:
    """The checkpoint that a file, a run's folder or the name of a run stands for.

    Args:
        source: a checkpoint, the folder of a run, or the name of one.
        runs_dir: the folder of all runs.

    Raises:
        RunError: if there is none.
    """
    if source.is_file():
        return source
    folder = source if source.is_dir() else runs_dir / source
    if not (folder / RECORD).is_file():
        raise RunError(f"{source} is no checkpoint and no run: name a file or a run's folder")
    return find_checkpoint(folder, chosen_checkpoint(RunRecord.open(folder)))


def in_run(record: RunRecord, evaluation: Evaluation) -> Evaluation:
    """Decides whether an evaluation belongs to the run, or is kept separately.

    The chosen checkpoint, `best` or `last`, gives the figures of the run. The other checkpoint
    gives them only while the chosen one has no figures; an evaluation of the chosen one separates
    them.

    Args:
        record: the run's record; saved if figures are separated.
        evaluation: the new evaluation.

    Returns:
        The evaluation, with other weights in ``differs`` if it is kept separately.
    """
    key = evaluation.key(record)
    if not _has_runs_weights(record, evaluation):
        others = {OTHER_WEIGHTS: evaluation.file(record)}
        return replace(evaluation, differs={**evaluation.differs, **others})
    there = record.evaluations.get(key)
    if evaluation.belongs_to_run and there and there["weights_sha256"] != evaluation.weights_sha256:
        set_aside(record, key)
        record.save()
    return evaluation


def _has_runs_weights(record: RunRecord, evaluation: Evaluation) -> bool:
    checkpoint, sha256 = evaluation.checkpoint, evaluation.weights_sha256
    if record.fields.get("job_type") != "fit":  # a run without a fit
        hashes = [entry.get("weights_sha256") for entry in record.evaluations.values()]
        return not hashes or sha256 in hashes
    if not is_in_folder(checkpoint, record.path) or checkpoint.stem not in {BEST, LAST}:
        return False
    chosen = f"{chosen_checkpoint(record)}.ckpt"
    there = record.evaluations.get(evaluation.key(record), {})
    if checkpoint.name != chosen == there.get("checkpoint"):
        return bool(there.get("weights_sha256") == sha256)
    known = record.fields.get("weights", {})
    return bool(known.get(checkpoint.name, sha256) == sha256)


def weights_of(run: Path) -> dict[str, str]:
    """Hashes of the weights behind a run's figures, by file."""
    files = [run / f"{name}.ckpt" for name in (BEST, LAST)]
    return {path.name: checkpoint_sha256(path) for path in files if path.is_file()}


def confirmed(record: RunRecord, evaluation: Evaluation) -> Evaluation:
    """The evaluation after a second check: separate if a fit has replaced the weights.

    Args:
        record: the run's record.
        evaluation: the evaluation.
    """
    if (
        not evaluation.belongs_to_run
        or not evaluation.identity
        or _still_has(record.path, evaluation)
    ):
        return evaluation
    return replace(evaluation, differs={OTHER_WEIGHTS: evaluation.checkpoint.name})


def _still_has(run: Path, evaluation: Evaluation) -> bool:
    sha256, path = evaluation.weights_sha256, evaluation.checkpoint
    if known := RunRecord.open(run).fields.get("weights"):
        return sha256 in known.values()
    if file_identity(path) == evaluation.identity:
        return True
    return path.is_file() and checkpoint_sha256(path) == sha256


def set_aside_others(record: RunRecord) -> None:
    """Separates figures, pictures and predictions of weights that the run does not have any more.

    Args:
        record: with the present ``weights``; not saved here.
    """
    kept = set(record.fields["weights"].values())
    for key, entry in [*record.evaluations.items()]:
        if not entry["differs"] and entry["weights_sha256"] not in kept:
            set_aside(record, key)


def set_aside(record: RunRecord, key: str) -> None:
    """Renames figures, pictures or predictions, because they belong to other weights.

    Args:
        record: the run's record; not saved here.
        key: of ``evaluations``: ``test``, ``validate``, or a file of predictions.
    """
    entry = record.evaluations.pop(key)
    entry["differs"] = {OTHER_WEIGHTS: entry["checkpoint"]}
    tag = _tag(entry["weights_sha256"], entry["differs"])
    if key in EVALUATED:
        names = [name for name in record.summary if name.startswith(f"{key}/")]
        entry |= {name.partition("/")[2]: record.summary.pop(name) for name in names}
    for name in _FILES[key] if key in EVALUATED else (key,):
        if (path := record.path / name).is_file():
            path.replace(path.with_name(f"{path.stem}{tag}{path.suffix}"))
    record.evaluations[f"{Path(key).stem}{tag}{Path(key).suffix}"] = entry


def _tag(sha256: str, differs: Mapping[str, Any]) -> str:
    return f"-{_digest([sha256, differs])}"


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
