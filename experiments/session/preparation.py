"""Checks a command completely before anything is written."""

import contextlib
import hashlib
import inspect
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from datamodules import CIFAR10DataModule
from datamodules.transforms import check_normalization
from experiments.checkpoints.evaluations import checkpoint_of, chosen_checkpoint
from experiments.checkpoints.loading import (
    BEST,
    LAST,
    TrainingSettings,
    check_model,
    check_training,
    checkpoint_sha256,
    find_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    state_of_data,
    state_sha256,
    training_settings,
    with_new_head,
)
from experiments.checkpoints.saving import entries_of
from experiments.errors import RunError
from experiments.lightning_seam import disable_signal_handlers
from experiments.records.files import file_identity
from experiments.records.record import RECORD, RunRecord, run_folder
from experiments.records.runs import class_name
from experiments.session.checks import (
    apply_precision,
    check_averaging,
    check_devices,
    check_fit,
    check_is_built,
    check_own_model,
    check_progress,
    check_validation,
    is_of_project,
    read_back,
    written_config,
)
from experiments.session.resuming import choose_run
from experiments.session.stopping import replace_max_time_timer
from lightning_modules import Classifier

if TYPE_CHECKING:
    from experiments.lightning_seam import CommandLine

_log = logging.getLogger(__name__)

# Options of a single command: later commands with the run's configuration reset them.
ONE_COMMAND_OPTIONS = {
    "ckpt_path": None,
    "name": None,
    "overwrite": False,
    "resume": False,
    "trust_run": False,
}


@dataclass(frozen=True)
class Weights:
    """The checkpoint that a command starts from or evaluates, at the time of reading.

    Attributes:
        path: the file.
        sha256: hash of its weights.
        step: optimiser steps of the weights.
        entries: number of log entries of its fit; None if unknown.
        identity: identifies the file, see `experiments.records.files.file_identity`.
    """

    path: Path
    sha256: str
    step: int
    entries: int | None
    identity: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A command whose data, model, checkpoint and trainer fit together.

    Attributes:
        command: fit, validate, test or predict.
        experiment: name of the experiment, for the names of its runs.
        typed: the command line.
        config: the configuration.
        written: the configuration as YAML, for the run's ``config.yaml``.
        resolved: the configuration as read back from this YAML.
        trainer: with the callbacks of the configuration.
        model: not trained yet.
        data: set up.
        initial: the weights that a new run takes from another, if any.
        weights: the checkpoint to start from or to evaluate, if any.
    """

    command: str
    experiment: str
    typed: str
    config: Namespace
    written: str
    resolved: dict[str, Any]
    trainer: Trainer
    model: Classifier
    data: CIFAR10DataModule
    weights: Weights | None
    initial: Weights | None

    @property
    def is_fit(self) -> bool:
        """Whether the command trains."""
        return self.command == "fit"

    @property
    def keeps_nothing(self) -> bool:
        """Whether the command is Lightning's ``fast_dev_run``, which has no run."""
        return bool(self.trainer.fast_dev_run)  # type: ignore[attr-defined]

    def facts(self) -> dict[str, Any]:
        """The fields for the record and W&B besides the configuration."""
        optimizer = self.resolved["model"].get("init_args", {}).get("optimizer") or {}
        facts: dict[str, Any] = {
            "job_type": self.command,
            "model": type(self.model).__name__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "optimizer": str(optimizer.get("class_path", "")).rpartition(".")[2],
            "lr": optimizer.get("init_args", {}).get("lr"),
            "seed": int(self.config.seed_everything),  # W&B would convert a `Seed` to a string
            "data": self.data.resolved_source,
        }
        facts |= own_inputs(self.model, self.data)
        if self.data.is_set_up:
            sets = {"train": self.data.train_set, "val": self.data.val_set}
            sets["test"] = self.data.test_set
            facts["images"] = {name: len(images.labels) for name, images in sets.items()}
        return facts


def own_inputs(model: Classifier, data: CIFAR10DataModule) -> dict[str, str]:
    """Hashes of what a configuration can't tell: the code of a user's own model, own pictures."""
    found = {}
    kind = type(model)
    if not is_of_project(kind):
        with contextlib.suppress(OSError, TypeError):  # a class of a notebook has no file
            code = Path(inspect.getfile(kind)).read_bytes()
            found["model_code"] = hashlib.sha256(code).hexdigest()[:12]
    if data.is_set_up and (pictures := data.fingerprint()):
        found["pictures"] = pictures[:12]
    return found


def prepare(cli: "CommandLine", command: str, experiment: str) -> Prepared:
    """Checks data, model, checkpoint and trainer, separately and together.

    Args:
        cli: the parsed command line with its data, model and trainer.
        command: fit, validate, test or predict.
        experiment: name of the experiment, for the names of its runs.

    Raises:
        DatasetError: if the data is missing or corrupted.
        RunError: if the run or the checkpoint can't be used for this command.
        ValueError: if data, model and checkpoint do not fit together.
    """
    config, model, data = cli.config[command], cli.model, cli.datamodule
    resumes = command == "fit" and config.resume
    checkpoint = _to_resume(config, experiment) if resumes else _asked_for(config, command)
    starts_new = command == "fit" and checkpoint is None and config.init_from is not None
    goes_on = checkpoint is not None or starts_new
    settings = _check_trainer(cli.trainer, model, config, command, goes_on)
    _set_up(data, command)
    _keep_no_best_without_validation(cli.trainer, data)
    if command == "fit":
        check_validation(cli.trainer, data, model)
        check_averaging(cli.trainer, model, data)
    weights = None
    if checkpoint is not None:
        weights = _load(checkpoint, cli, command, settings, resumes)
    initial = _initialize(model, data, config) if starts_new else None
    ours, theirs = model.num_classes, len(data.label_names)
    if ours != theirs:
        raise ValueError(f"model.num_classes is {ours}, but the data has {theirs} classes")
    if command == "fit":
        check_own_model(model, cli.trainer)
        cli.trainer.callbacks.append(TrainingSettings(settings))  # type: ignore[attr-defined]
    parser = cli.command_parser(command)
    kept = config.clone()
    for key, value in ONE_COMMAND_OPTIONS.items():
        kept[key] = value
    written = written_config(parser, kept)
    resolved = read_back(parser, written)
    typed: str = getattr(cli, "command_line", "")
    return Prepared(
        command,
        experiment,
        typed,
        config,
        written,
        resolved,
        cli.trainer,
        model,
        data,
        weights,
        initial,
    )


def _check_trainer(
    trainer: Trainer, model: Classifier, config: Namespace, command: str, goes_on: bool
) -> dict[str, Any]:
    """Checks the trainer, alone and with the model; returns the settings of the training."""
    disable_signal_handlers(trainer)
    replace_max_time_timer(trainer)
    check_devices(trainer)
    check_is_built(model)
    apply_precision(trainer, model)
    model.check_trainer(trainer)
    if command == "fit":
        check_fit(trainer, config.test_after_fit)
        model.prepare_fit(goes_on=goes_on)
        if config.save_every_min <= 0:
            raise ValueError(f"save_every_min must be positive, got {config.save_every_min}")
    return training_settings(model)  # a bad learning rate is an error here


def _set_up(data: CIFAR10DataModule, command: str) -> None:
    if command == "predict" and data.predict_dir is not None:
        data.images_to_predict  # noqa: B018 - an unreadable one is an error here
    else:
        data.prepare_data()
        data.setup()


def _read(path: Path, model: Classifier) -> tuple[dict[str, Any], Weights]:
    """Reads a checkpoint of this model, and describes it."""
    identity, content = file_identity(path), load_checkpoint(path)
    check_model(path, content, model)
    return content, _weights(path, content, identity)


def _weights(path: Path, content: dict[str, Any], identity: tuple[int, ...]) -> Weights:
    sha256, step = state_sha256(content["state_dict"]), int(content["global_step"])
    return Weights(path, sha256, step, entries_of(content), identity)


def _load(
    checkpoint: Path, cli: "CommandLine", command: str, settings: dict[str, Any], resumes: bool
) -> Weights:
    """Checks that a checkpoint fits model, training and data, and describes it."""
    content, weights = _read(checkpoint, cli.model)
    if command == "fit":
        check_training(checkpoint, content, settings)
    if (name := type(cli.datamodule).__qualname__) in content:
        cli.datamodule.load_state_dict(content[name])
    if command == "fit" and not resumes:
        check_progress(checkpoint, content, cli.trainer, cli.datamodule)
    return weights


def _initialize(model: Classifier, data: CIFAR10DataModule, config: Namespace) -> Weights:
    """Gives a model the weights of ``--init_from``; the data may be another, not its scale.

    For data with another number of classes, the last layer begins anew.
    """
    path = checkpoint_of(Path(config.init_from), Path(config.runs_dir))
    identity, content = file_identity(path), load_checkpoint(path)
    _, trained_on = state_of_data(path, content)
    adapted, anew = with_new_head(path, content, model)
    check_model(path, adapted, model, new_head=True)
    check_normalization(trained_on["normalization"], data.normalization)
    model.load_state_dict(adapted["state_dict"])
    if anew:
        classes = len(trained_on["label_names"])
        _log.info(f"{', '.join(anew)} begin anew: {path} is for {classes} classes")
    return _weights(path, content, identity)


def _asked_for(config: Namespace, command: str) -> Path | None:
    """The checkpoint of ``--ckpt_path`` and ``--name``; an evaluation must have one."""
    asked = config.ckpt_path
    if command == "fit" and asked is not None and config.init_from is not None:
        raise RunError(
            "--init_from takes the weights alone, --ckpt_path all that a checkpoint holds: leave "
            "one out"
        )
    if asked is None and command == "fit":
        return None
    if config.overwrite:
        raise RunError("--overwrite replaces a run, --ckpt_path starts from one: leave one out")
    if asked is None and config.name is None:
        raise RunError(
            f"{command} needs weights: pass --name RUN (for its best checkpoint) or "
            "--ckpt_path FILE; random weights are never evaluated"
        )
    if asked not in {None, BEST, LAST}:
        return Path(asked)
    if config.name is None:
        raise RunError(f"--ckpt_path {asked} needs a run: pass --name RUN")
    record = RunRecord.open(run_folder(Path(config.runs_dir), config.name))
    return find_checkpoint(record.path, asked or chosen_checkpoint(record))


def _to_resume(config: Namespace, experiment: str) -> Path | None:
    """The newest checkpoint of the run that ``--resume`` names, or the one it starts from."""
    if config.overwrite:
        raise RunError("--overwrite replaces a run, --resume continues it: leave one out")
    root = Path(config.runs_dir)
    seed, data = int(config.seed_everything), class_name(config.data.class_path)
    config.name = config.name or choose_run(root, experiment, seed, data)
    if config.name is not None:
        run = run_folder(root, config.name)
        if (run / RECORD).is_file():
            return newest_checkpoint(run) or _start_of(RunRecord.open(run), config.ckpt_path)
    return Path(config.ckpt_path) if config.ckpt_path else None


def _start_of(record: RunRecord, asked: str | None) -> Path | None:
    """The starting checkpoint of a run that was killed before it saved its own."""
    began = record.fields.get("started_from")
    if asked or began is None or began.get("weights_only"):
        return Path(asked) if asked else None
    path = Path(str(began.get("checkpoint")))
    if not path.is_file() or checkpoint_sha256(path) != began.get("weights_sha256"):
        raise RunError(
            f"run {record.name} began with the weights of {path}, which are not there any more: "
            "name where they are with --ckpt_path, or start again with --overwrite true"
        )
    return path


def _keep_no_best_without_validation(trainer: Trainer, data: CIFAR10DataModule) -> None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and not data.val_size:
            callback.monitor, callback.save_top_k = None, 0
