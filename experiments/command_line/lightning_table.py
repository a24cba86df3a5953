"""The parts of Lightning that a run may use: each works, also after a resume, or is refused.

`tests/test_lightning.py` lists the parts of the installed Lightning, and fails for a part that
these tables do not decide.
"""

import os
import pydoc
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jsonargparse.typing import register_type
from pytorch_lightning.accelerators import CUDAAccelerator

from experiments.records.curves import CHOSEN_BY, direction

# The default of SWA is a device, which a configuration can't hold.
register_type(torch.device, deserializer=torch.device)
# `experiments.session.checks.written_config` reports a value that can't be written.
warnings.filterwarnings("ignore", r"\s*Unable to serialize instance")

WORKS = ""
_BASE_CLASS_ONLY = "is only a base class: name a class that derives from it"

CALLBACKS: dict[str, str] = {
    "BackboneFinetuning": "unfreezes a `backbone`, which no model here has; take --model FineTuned "
    "with --model.freeze",
    "BaseFinetuning": WORKS,
    "BasePredictionWriter": WORKS,
    "BatchSizeFinder": "would change data.batch_size behind the run's configuration; try values "
    "with --data.batch_size",
    "Callback": WORKS,
    "Checkpoint": WORKS,
    "DeviceStatsMonitor": "logs the load of the machine, which differs from run to run; W&B shows "
    "it under System",
    "EMAWeightAveraging": WORKS,
    "EarlyStopping": WORKS,
    "GradientAccumulationScheduler": WORKS,
    "LambdaCallback": WORKS,
    "LearningRateFinder": "would change the learning rate behind the run's configuration; try "
    "values with --model.lr",
    "LearningRateMonitor": WORKS,
    "ModelCheckpoint": WORKS,
    "ModelPruning": "changes which weights a model has, so that its checkpoints load no more; use "
    "torch.nn.utils.prune on a trained checkpoint",
    "ModelSummary": WORKS,
    "OnExceptionCheckpoint": "would save inside a batch; a run saves itself when it is stopped: "
    "leave it out, and resume it with --resume",
    "ProgressBar": WORKS,
    "RichModelSummary": WORKS,
    "RichProgressBar": WORKS,
    "SpikeDetection": "forgets earlier losses on a resume; a loss that is not finite "
    "ends a run anyway, and --trainer.gradient_clip_val bounds steps",
    "StochasticWeightAveraging": WORKS,
    "TQDMProgressBar": WORKS,
    "ThroughputMonitor": "logs times, which differ from run to run; images_per_s is logged without "
    "it",
    "Timer": "counts time that its configuration can't hold; take --trainer.max_time",
    "WeightAveraging": WORKS,
}

_BASES = {"BaseFinetuning", "BasePredictionWriter", "Callback", "Checkpoint", "ProgressBar"}

_TAKE_DDP = "take ddp"
_SPAWNS = f"starts processes that have no command line of their own; {_TAKE_DDP}"
_SHARDS = f"splits a model that fits every device whole; {_TAKE_DDP}"
_TPU = "is for TPUs, which have not been tried; run on a CPU or GPU without it"

STRATEGIES: dict[str, str] = {
    "auto": WORKS,
    "ddp": WORKS,
    "ddp_find_unused_parameters_false": WORKS,
    "ddp_find_unused_parameters_true": WORKS,
    **{
        f"ddp_{start}{rest}": _SPAWNS
        for start in ("spawn", "fork", "notebook")
        for rest in ("", "_find_unused_parameters_false", "_find_unused_parameters_true")
    },
    "deepspeed": _SHARDS,
    "deepspeed_stage_1": _SHARDS,
    "deepspeed_stage_2": _SHARDS,
    "deepspeed_stage_2_offload": _SHARDS,
    "deepspeed_stage_3": _SHARDS,
    "deepspeed_stage_3_offload": _SHARDS,
    "deepspeed_stage_3_offload_nvme": _SHARDS,
    "fsdp": _SHARDS,
    "fsdp_cpu_offload": _SHARDS,
    "single_device": WORKS,
    "single_tpu": _TPU,
    "single_xla": _TPU,
    "xla": _TPU,
    "xla_debug": _TPU,
    "DDPStrategy": WORKS,
    "DeepSpeedStrategy": _SHARDS,
    "FSDPStrategy": _SHARDS,
    "ModelParallelStrategy": _SHARDS,
    "ParallelStrategy": _BASE_CLASS_ONLY,
    "SingleDeviceStrategy": WORKS,
    "SingleDeviceXLAStrategy": _TPU,
    "SingleTPUStrategy": _TPU,
    "Strategy": _BASE_CLASS_ONLY,
    "XLAStrategy": _TPU,
}

_NO_ENGINE = "needs a library of NVIDIA and has not been tried; take bf16-mixed"

PRECISIONS: dict[str, str] = {
    "16": WORKS,
    "16-mixed": WORKS,
    "16-true": WORKS,
    "32": WORKS,
    "32-true": WORKS,
    "64": WORKS,
    "64-true": WORKS,
    "bf16": WORKS,
    "bf16-mixed": WORKS,
    "bf16-true": WORKS,
    "transformer-engine": _NO_ENGINE,
    "transformer-engine-float16": _NO_ENGINE,
}

_TWICE = "would have some steps twice after a kill and a resume; "
_NOT_EXACT = (
    f"{_TWICE}every entry is in the run's metrics.jsonl, and W&B's files: leave trainer.logger as "
    "it is"
)

LOGGERS: dict[str, str] = {
    "CSVLogger": f"{_TWICE}take experiments.RunCSVLogger",
    "CometLogger": _NOT_EXACT,
    "LitLogger": _NOT_EXACT,
    "Logger": _BASE_CLASS_ONLY,
    "MLFlowLogger": _NOT_EXACT,
    "TensorBoardLogger": f"{_TWICE}take experiments.RunTensorBoardLogger",
    "WandbLogger": "begins another W&B run with each process; take experiments.WandbLogger",
}

PROFILERS: dict[str, str] = {
    "advanced": WORKS,
    "pytorch": WORKS,
    "simple": WORKS,
    "xla": _TPU,
    "AdvancedProfiler": WORKS,
    "PassThroughProfiler": WORKS,
    "Profiler": _BASE_CLASS_ONLY,
    "PyTorchProfiler": WORKS,
    "SimpleProfiler": WORKS,
    "XLAProfiler": _TPU,
}

_USE_PRECISION_FLAG = "is chosen with --trainer.precision: leave it out"
_REPLACES_OURS = (
    "would take the place of this project's own, which writes whole files or none: leave it out"
)

PLUGINS: dict[str, str] = {
    "AsyncCheckpointIO": _REPLACES_OURS,
    "BitsandbytesPrecision": "changes a model's layers to ones of 8 bits and has not been tried; "
    "leave it out",
    "CheckpointIO": WORKS,
    "ClusterEnvironment": WORKS,
    "DeepSpeedPrecision": _USE_PRECISION_FLAG,
    "DoublePrecision": _USE_PRECISION_FLAG,
    "FSDPPrecision": _USE_PRECISION_FLAG,
    "HalfPrecision": _USE_PRECISION_FLAG,
    "KubeflowEnvironment": "has not been tried; torchrun starts processes on many machines",
    "LSFEnvironment": "has not been tried; torchrun starts processes on many machines",
    "LayerSync": WORKS,
    "LightningEnvironment": WORKS,
    "MPIEnvironment": "has not been tried; torchrun starts processes on many machines",
    "MixedPrecision": _USE_PRECISION_FLAG,
    "Precision": _USE_PRECISION_FLAG,
    "SLURMEnvironment": WORKS,
    "TorchCheckpointIO": _REPLACES_OURS,
    "TorchElasticEnvironment": WORKS,
    "TorchSyncBatchNorm": WORKS,
    "TransformerEnginePrecision": _USE_PRECISION_FLAG,
    "XLACheckpointIO": _REPLACES_OURS,
    "XLAEnvironment": _TPU,
    "XLAPrecision": _USE_PRECISION_FLAG,
}

ACCELERATORS: dict[str, str] = {
    "auto": WORKS,
    "cpu": WORKS,
    "cuda": WORKS,
    "gpu": WORKS,
    "mps": WORKS,
    "tpu": _TPU,
}

# Flags of the Trainer: those whose values the tables above decide; those that allow any value (a
# wrong one is refused by Lightning or by `experiments.session.checks`); those that allow only the
# default.
DECISION_TABLES: dict[str, Mapping[str, str]] = {
    "accelerator": ACCELERATORS,
    "callbacks": CALLBACKS,
    "logger": LOGGERS,
    "plugins": PLUGINS,
    "precision": PRECISIONS,
    "profiler": PROFILERS,
    "strategy": STRATEGIES,
}
ANY_VALUE = {
    "accumulate_grad_batches",
    "benchmark",
    "check_val_every_n_epoch",
    "detect_anomaly",
    "deterministic",
    "devices",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "gradient_clip_algorithm",
    "gradient_clip_val",
    "inference_mode",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_train_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "num_nodes",
    "num_sanity_val_steps",
    "overfit_batches",
    "reload_dataloaders_every_n_epochs",
    "sync_batchnorm",
    "use_distributed_sampler",
    "val_check_interval",
}
DEFAULT_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "barebones": (
        (None, False),
        "keeps no record, checkpoint or log, which every run here has; leave it out",
    ),
    "default_root_dir": ((None, "runs"), "does not say where runs are kept; take --runs_dir"),
    "model_registry": ((None,), "is a service of Lightning's that keeps no run; leave it out"),
}


# Options that make up the key of a callback's state in Lightning, which refuses equal keys.
_KEYS = {
    "EarlyStopping": ("monitor", "mode"),
    "ModelCheckpoint": ("monitor", "mode", "every_n_train_steps", "every_n_epochs"),
}
# The key of this project's own callback, see `experiments.checkpoints.saving.best_checkpoint`.
_BEST_KEY = ("ModelCheckpoint", CHOSEN_BY, direction(CHOSEN_BY), None, None)
_OUR_FILES = ("best", "last", "previous", "abandoned")


def check_lightning(trainer: Any) -> None:
    """Refuses parts of Lightning that would not work, before any of them is built.

    Args:
        trainer: the section ``trainer`` of a configuration.

    Raises:
        ValueError: naming the setting, the reason and the remedy.
    """
    for flag, (values, reason) in DEFAULT_ONLY.items():
        if trainer.get(flag) not in values:
            raise ValueError(f"trainer.{flag} {reason}")
    if trainer.get("logger") is True:
        raise ValueError(f"trainer.logger: true makes a CSVLogger, which {LOGGERS['CSVLogger']}")
    _check_float16(trainer)
    keys = [_BEST_KEY]
    for flag, table in DECISION_TABLES.items():
        for name, options in _asked_for(trainer.get(flag)):
            short = name.rpartition(".")[2]
            if reason := refusal(table, name):
                raise ValueError(f"trainer.{flag}: {short} {reason}")
            kind = kind_of(table, name)
            _check_options(kind, options)
            if kind in _KEYS:
                keys.append((kind, *(options.get(option) for option in _KEYS[kind])))
    ours = [name for name, _ in _asked_for(trainer.get("logger")) if name.endswith("WandbLogger")]
    if len(ours) > 1:
        raise ValueError("trainer.logger: a run has one W&B logger: name it once")
    _check_keys(keys)


def _asked_for(value: Any) -> Iterator[tuple[str, Any]]:
    """The names or class paths in a setting, each with its arguments."""
    for item in value if isinstance(value, list | tuple) else [value]:
        if item is None or isinstance(item, bool):
            continue
        if isinstance(item, str | int):
            yield str(item), {}
        else:
            yield str(item.class_path), item.get("init_args") or {}


def kind_of(table: Mapping[str, str], name: str) -> str:
    """The table entry for a name or a class path; empty if there is none.

    The nearest base class of Lightning decides a class of the user.
    """
    if "." not in name:
        return name if name in table else ""
    cls = pydoc.locate(name)
    found = cls.__mro__ if isinstance(cls, type) else ()
    if any(c.__module__.startswith("experiments.") for c in found):
        return ""
    return next((c.__name__ for c in found if _is_lightning_class(c) and c.__name__ in table), "")


def refusal(table: Mapping[str, str], name: str) -> str:
    """The reason why a part of Lightning is refused, and the remedy.

    Args:
        table: a table of this module.
        name: a name of the table, or the path of a class.

    Returns:
        The reason and the remedy; empty if it works.
    """
    kind = kind_of(table, name)
    reason = table.get(kind, WORKS)
    if kind not in _BASES:
        return reason
    return _BASE_CLASS_ONLY if name.endswith(f".{kind}") else WORKS


def _is_lightning_class(cls: type) -> bool:
    return cls.__module__.startswith(("pytorch_lightning.", "lightning_fabric."))


def _check_options(kind: str, options: Any) -> None:
    """Refuses options with which a working part does not work."""
    start = options.get("start_method")
    if kind == "DDPStrategy" and start not in {None, "popen"}:
        raise ValueError(f"trainer.strategy: DDPStrategy with start_method {start} {_SPAWNS}")
    if kind in PROFILERS and options.get("dirpath"):
        raise ValueError(
            f"trainer.profiler: the files of {kind} lie in the run's folder: leave dirpath out, "
            "and name them with filename"
        )
    if kind == "ModelCheckpoint":
        _check_model_checkpoint(options)


def _check_model_checkpoint(options: Any) -> None:
    refused = {
        "dirpath": "checkpoints lie in the run's folder: leave it out",
        "save_last": "last.ckpt is saved anyway: leave it out",
        "save_on_exception": "a run saves itself when it is stopped: leave it out, and resume it "
        "with --resume",
        "train_time_interval": "what the clock decides differs from run to run: take "
        "every_n_train_steps, or --save_every_min for last.ckpt",
    }
    for option, remedy in refused.items():
        if options.get(option):
            raise ValueError(f"trainer.callbacks: ModelCheckpoint.{option}: {remedy}")
    name = options.get("filename") or ""
    inserted = options.get("auto_insert_metric_name") is not False
    fixed = name if inserted else re.sub(r"\{.*?\}", "", name)
    if "/" in fixed or os.sep in fixed:
        raise ValueError(
            f"trainer.callbacks: ModelCheckpoint.filename must not contain a slash, got {name!r}: "
            "for metrics, write such as 'acc_{val/acc:.3f}' and auto_insert_metric_name false"
        )
    if name in _OUR_FILES:
        raise ValueError(
            f"trainer.callbacks: ModelCheckpoint.filename {name!r} is that of a file that every "
            "run has: take another"
        )


def _check_keys(keys: list[tuple[Any, ...]]) -> None:
    """Refuses callbacks that Lightning can't distinguish in a checkpoint."""
    for place, key in enumerate(keys):
        kind, *options = key
        if key == _BEST_KEY and place:
            raise ValueError(
                "trainer.callbacks: a ModelCheckpoint of val/acc, mode max, is there already and "
                "keeps best.ckpt: leave this one out, or set its every_n_epochs to 1 or more"
            )
        if key in keys[:place]:
            raise ValueError(
                f"trainer.callbacks: two {kind} must differ in {', '.join(_KEYS[kind])}; "
                f"both have {', '.join(map(str, options))}"
            )


def _check_float16(trainer: Any) -> None:
    """Refuses float16 if Lightning would use bfloat16 instead."""
    asked, device = str(trainer.get("precision")), trainer.get("accelerator")
    on_gpu = {"gpu", "cuda", "mps"} | ({None, "auto"} if CUDAAccelerator.is_available() else set())
    if asked in {"16", "16-mixed"} and device not in on_gpu:
        raise ValueError(f"trainer.precision: {asked} needs a GPU; take bf16-mixed on the CPU")
