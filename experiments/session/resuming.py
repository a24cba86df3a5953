"""Resumes runs: finds the run, decides what is left to do, and locks it for one process."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from experiments.checkpoints.loading import ABANDONED, BEST, LAST, PREVIOUS, steps_behind
from experiments.errors import RunError
from experiments.identity import experiment_name, file_word, kind_of
from experiments.records.files import (
    LOCK,
    RECORD_LOCK,
    check_folder,
    is_in_folder,
    replacing,
    writing,
)
from experiments.records.record import CONFIG, RECORD, RunRecord, was_never_begun
from experiments.records.runs import flat_config, read_run

_log = logging.getLogger(__name__)


def choose_run(root: Path, name: str, seed: int, data: str) -> str | None:
    """Finds the newest unfinished run of the same experiment, seed and data, if no name is given.

    Args:
        root: the folder of all runs.
        name: of the experiment (see `experiments.identity.experiment_of`).
        seed: the seed of everything.
        data: the class of the data, see `experiments.records.runs.class_name`.

    Returns:
        The run's name; None if there is none, so that a new run starts.
    """
    found = []
    for path in root.glob(f"{name}-*/{RECORD}"):
        run = read_run(path.parent)
        named = {name, f"{name}-{file_word(str(run.fields.get('data')))}"}
        same = experiment_name(run.name) in named and run.config.get("data", data) == data
        same = same and run.fields.get("seed") == seed
        if same and run.fields.get("job_type") == "fit" and run.fields.get("status") != "finished":
            found.append((str(run.fields.get("started")), run.name))
    if not found:
        _log.info(f"no unfinished run of {name} with seed {seed} in {root}: a new one")
        return None
    return max(found)[1]


def config_before(record: RunRecord) -> dict[str, Any]:
    """The previous configuration of a run, flat; empty if the run has not written it yet.

    Raises:
        RunError: if the file exists and can't be read.
    """
    try:
        return flat_config(record.path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        path = record.path / CONFIG
        raise RunError(
            f"{path} can't be read, so changes could not be shown: repair or remove it"
        ) from error


def is_finished(record: RunRecord, before: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a run is finished, and the command asks for no longer training and no missing test.

    Args:
        record: the run's record.
        before: the old configuration, flat.
        config: the new configuration, flat.
    """
    if record.fields.get("status") != "finished":
        return False
    untested = config["test_after_fit"] and "test/acc" not in record.summary
    if limits_changed(before, config) or untested:
        return False
    _log.info(f"run {record.name} is finished; to train it longer, raise --trainer.max_steps")
    return True


def limits_changed(before: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether the command makes a run shorter or longer."""
    limits = ("trainer.max_steps", "trainer.max_epochs")
    return any(before.get(name) != config.get(name) for name in limits)


def note_unused(changes: Mapping[str, Any]) -> None:
    """Says which settings a finished run does not take, since nothing is left to train."""
    if changes:
        listed = ", ".join(f"{name} {now}" for name, (_, now) in changes.items())
        _log.info(f"not used, as the run is finished: {listed}; for another run, pass --name")


def note_changes(changes: Mapping[str, Any]) -> None:
    """Prints the settings that a resume changes, because they change the result of the run."""
    if changes:
        listed = ", ".join(f"{name} {now} (was {was})" for name, (was, now) in changes.items())
        _log.info(f"the run continues with other settings: {listed}")


def is_best_anew(run: Path, step: int, changes: Mapping[str, Any], longer: bool) -> bool:
    """Whether the best checkpoint of a resumed run does not count any more.

    It does not count if it was the best on other validation images or of another network. It does
    not count either if it is from a later step than the resumed checkpoint and the run continues
    differently.

    Args:
        run: the run's folder.
        step: optimiser steps of the resumed checkpoint.
        changes: see `experiments.identity.changes_between`.
        longer: see `limits_changed`.
    """
    best = run / f"{BEST}.ckpt"
    if not best.is_file():
        return False
    if any(kind_of(key).figures or kind_of(key).validation for key in changes):
        return True
    return bool(changes or longer) and steps_behind(best) > step


def go_back_to(checkpoint: Path | None, run: Path, best_anew: bool) -> None:
    """Makes a checkpoint the newest of its run, and renames checkpoints that are not of its past.

    If the process is killed after this, the next resume starts from the same checkpoint.

    Args:
        checkpoint: the resumed checkpoint; None to start again.
        run: the run's folder.
        best_anew: whether the best checkpoint does not count any more.
    """
    if best_anew:
        (run / f"{BEST}.ckpt").replace(run / f"{ABANDONED}.ckpt")
        _log.info(f"{BEST}.ckpt was the best of another training: it is {ABANDONED}.ckpt now")
    if checkpoint is None or checkpoint.name == f"{LAST}.ckpt":
        return
    if not is_in_folder(checkpoint, run):
        return
    if checkpoint.name != f"{PREVIOUS}.ckpt":
        (run / f"{PREVIOUS}.ckpt").unlink(missing_ok=True)
    with replacing(run / f"{LAST}.ckpt") as partial:
        shutil.copyfile(checkpoint, partial)


class BestAnew(Callback):
    """Makes callbacks forget the best validation if it belongs to another training.

    If it still counts, checkpoint callbacks get the present folder of the run: Lightning drops the
    best checkpoint of a run that was moved or copied.

    Args:
        is_anew: whether callbacks must forget it; only the first process knows.
    """

    def __init__(self, is_anew: bool = False) -> None:
        self.is_anew = is_anew

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Changes the states of callbacks in the loaded checkpoint."""
        states = checkpoint.get("callbacks", {})
        is_anew = trainer.strategy.broadcast(self.is_anew)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if is_anew and str(getattr(callback, "monitor", "")).startswith("val/"):
                states.pop(callback.state_key, None)
            elif (
                isinstance(callback, ModelCheckpoint)
                and callback.state_key in states
                and is_in_folder(str(trainer.ckpt_path), str(callback.dirpath))  # not another run's
            ):
                _move(states[callback.state_key], str(callback.dirpath))


def _move(state: dict[str, Any], folder: str) -> None:
    """Points the state of a `ModelCheckpoint` at files of the same names in another folder."""
    state["dirpath"] = folder
    for key in ("best_model_path", "kth_best_model_path", "last_model_path"):
        if state.get(key):
            state[key] = str(Path(folder) / Path(state[key]).name)
    best = state.get("best_k_models", {})
    state["best_k_models"] = {str(Path(folder) / Path(k).name): v for k, v in best.items()}


def check_room(path: Path, overwrite: bool) -> None:
    """Refuses a non-empty folder for a new run, unless it is a run to replace.

    Raises:
        RunError: naming the remedy.
    """
    if not path.exists() or was_never_begun(path):
        return
    if not overwrite:
        raise RunError(
            f"{path} exists: resume it with --resume, replace it with --overwrite true, or choose "
            "another --name"
        )
    if not (path / RECORD).is_file():
        raise RunError(f"{path} is not a run of this project (no {RECORD}): not overwritten")


def make_room(path: Path, overwrite: bool) -> None:
    """Empties the locked folder of a new run, except for the lock.

    Raises:
        RunError: see `check_room`; another process may have used the folder first.
    """
    check_room(path, overwrite)
    for entry in path.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in {LOCK, RECORD_LOCK}:
            entry.unlink()


class RunLock:
    """Keeps a second process from training the same run; the system frees the lock at exit.

    Args:
        path: the run's folder.

    Raises:
        RunError: if another process trains this run, or its folder has unsafe links.
    """

    def __init__(self, path: Path) -> None:
        check_folder(path)
        self.path = path
        self._file = FileLock(path / LOCK)

    def acquire(self) -> None:
        """Takes the lock, and creates the folder if it is missing.

        Raises:
            RunError: if another process has the lock, or the folder can't be created.
        """
        with writing(self.path, "name another with --runs_dir, or fix its permissions"):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._file.acquire(timeout=0)
        except Timeout as error:  # a subclass of OSError, so it comes first
            raise RunError(
                f"run {self.path.name} is being trained by another process; wait for it, or take "
                "another --name"
            ) from error
        except (OSError, NotImplementedError):
            pass  # a file system without locks

    def release(self) -> None:
        """Allows other processes to train the run."""
        self._file.release()
