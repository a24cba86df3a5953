"""Whether two runs belong to the same experiment: one table has the effects of each setting.

Settings have flat keys: ``model.norm``, not ``model.init_args.norm`` (see `runs.flat`).
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The short key of the learning rate, and its key in configurations.
LEARNING_RATE = "model.lr"
LEARNING_RATE_LONG = "model.init_args.optimizer.init_args.lr"
# The seed of everything: here, and as other projects call it.
SEEDS = ("seed_everything", "seed", "random_seed", "random_state", "manual_seed")
MAX_TIME = "trainer.max_time"  # ``stopped_by`` begins with it if this limit stopped the run


@dataclass(frozen=True)
class Kind:
    """The effects of a setting in which two runs differ; by default, it makes another experiment.

    Attributes:
        name: a flag for it is part of the default name of a run.
        group: the runs are not repeats of each other, so `compare` does not group them.
        resume: a resumed run with another value prints the change and records it.
        claim: ``reproduce.py`` can't use one run in place of the other.
        figures: the same weights give other figures on the same images.
        validation: the runs validate on other images.
    """

    name: bool = True
    group: bool = True
    resume: bool = True
    claim: bool = True
    figures: bool = False
    validation: bool = False


_CIRCUMSTANCE = Kind(name=False, group=False, resume=False, claim=False)
# Patterns of keys; the first match counts.
TABLE: tuple[tuple[str, Kind], ...] = (
    # The folder of a run, its start and its logging; W&B has the fields of its record as `run`.
    (r"name|config|overwrite|resume|trust_run|save_every_min|ckpt_path", _CIRCUMSTANCE),
    (r"runs_dir|test_after_fit|data\.data_dir|trainer\.logger.*|run\..*", _CIRCUMSTANCE),
    (r"data\.download|trainer\.(default_root_dir|enable_.*)", Kind(name=False, group=False)),
    # Seeds; the name of a run ends in the seed of everything.
    ("|".join(SEEDS), Kind(name=False, group=False)),
    (r"data\.seed", Kind(group=False)),
    # A resumed run may have higher limits.
    (r"trainer\.max_(steps|epochs)", Kind(resume=False)),
    (r"trainer\.max_time(\.\w+)?", Kind(group=False, resume=False)),  # unless it stopped the run
    (r"trainer\.(accelerator|devices|strategy|num_nodes|log_every_n_steps)", Kind(name=False)),
    (r"data\.predict_dir", Kind(name=False)),
    # The images; they are not part of a name.
    (r"data(\.(source|synthetic_images))?", Kind(name=False, figures=True, validation=True)),
    (r"data\.(val_size|split_seed)|trainer\.(limit_val|overfit)_batches", Kind(validation=True)),
    (r"trainer\.callbacks", Kind(claim=False)),  # every claim sets its own callbacks
    # Of a user's own: the code of a model and the pictures of folders, by hashes.
    (r"model_code", Kind(name=False, figures=True)),
    (r"pictures", Kind(name=False, figures=True, validation=True)),
    # Settings that only affect training, and then the network; a name has its class in front.
    (r"model\.(optimizer|lr_scheduler|lr_interval|label_smoothing)(\..*)?", Kind()),
    (r"model\..*|data\.normalization|trainer\.precision", Kind(figures=True)),
    (r"model", Kind(name=False, figures=True)),
    (r"\w+", Kind(name=False)),  # options of a command
)
_CALLBACKS = "trainer.callbacks"
# Callbacks that only observe; others, such as averaged weights, make another experiment.
_OBSERVER = re.compile(r"\w*(ProgressBar|Monitor|Summary|Statistics)|CurveOnTest")
# Values of settings that neither config files nor flags set, to notice an omitted flag too.
_IMPLIED_SETTINGS: Mapping[str, Any] = {
    "data.source": "cifar10",
    **dict.fromkeys(f"trainer.limit_{kind}_batches" for kind in ("train", "val", "test")),
}
_LONGEST = 80  # characters of a name, before seed and time
_OVERLAYS = {"data", "trainer", "logger"}  # folders of configs that are not part of a name
# The end of a run's name: a seed, a time, a counter for the same time.
_SEED_AND_TIME = re.compile(r"(-s\d+)?(-\d{8}-\d{6}(-\d+)?)?$")


@functools.cache
def kind_of(key: str) -> Kind:
    """The kind of a setting, by its flat key."""
    return next((kind for keys, kind in TABLE if re.fullmatch(keys, key)), Kind())


def flat_key(key: str) -> str:
    """The flat form of a key of a flag or a config file.

    ``model.init_args.norm`` is ``model.norm``, ``model.lr`` is ``model.optimizer.lr``.
    """
    return (LEARNING_RATE_LONG if key == LEARNING_RATE else key).replace(".init_args.", ".")


def expand_learning_rate(argument: str) -> str:
    """Expands ``--model.lr`` and ``--model.lr=VALUE``; leaves other arguments unchanged."""
    flag, equals, value = argument.partition("=")
    return f"--{LEARNING_RATE_LONG}{equals}{value}" if flag == f"--{LEARNING_RATE}" else argument


def flags_of(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Reads flags and their values, as ``--key value`` or ``--key=value``.

    Args:
        arguments: of a command; arguments before the first flag are ignored.

    Returns:
        Keys without dashes, with values; the value is empty for a flag without one.

    Raises:
        ValueError: for an argument after the first flag that is neither a flag nor its value.
    """
    found: list[tuple[str, str]] = []
    is_open = False
    for argument in arguments:
        if argument.startswith("-") and not re.fullmatch(r"-\d.*", argument):
            key, equals, value = argument.lstrip("-").partition("=")
            found.append((key, value))
            is_open = not equals
        elif is_open:
            found[-1] = (found[-1][0], argument)
            is_open = False
        elif found:
            raise ValueError(
                f"{argument!r} is the value of no flag; put values with spaces in quotes"
            )
    return found


def written_out(arguments: Sequence[str]) -> list[str]:
    """Writes ``--key value`` as ``--key=value``; a flag without a value stays alone.

    Args:
        arguments: see `flags_of`.

    Raises:
        ValueError: see `flags_of`.
    """
    return [f"--{key}={value}" if value else f"--{key}" for key, value in flags_of(arguments)]


def as_flag(value: Any) -> str:
    """A value as flags take it: JSON is YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def experiment_of(arguments: Sequence[str]) -> str:
    """The name of an experiment: its config files, and the flags that change it.

    ``fit --config configs/mlp.yaml --model.lr 0.01`` is ``mlp-lr_0.01``.

    Args:
        arguments: of the command; short forms are allowed.

    Raises:
        ValueError: see `flags_of`.
    """
    flags = flags_of(arguments)
    configs = [Path(value) for key, value in flags if key in {"c", "config"}]
    parts = [path.stem for path in configs if path.parent.name not in _OVERLAYS]
    last = {flat_key(key.removesuffix("+")): value for key, value in flags}
    if model := last.get("model", "").rpartition(".")[2].lower():
        parts += [model] if model not in parts else []
    parts += sorted(
        f"{key.rpartition('.')[2]}_{file_word(value)}"
        for key, value in last.items()
        if kind_of(key).name
    )
    name = "-".join(map(file_word, parts)) or "run"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - len(digest) - 1]}-{digest}"


def file_word(text: str) -> str:
    """Replaces the characters that a file system may not allow in a name."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")


def experiment_name(name: str) -> str:
    """The name that runs of one experiment share: a run's name without seed and time."""
    return _SEED_AND_TIME.sub("", name) or name


def run_labels(name: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The default group, job type and tags of a run in another tool.

    Args:
        name: of the run.
        fields: of its record.
    """
    known = [fields.get(key) for key in ("model", "optimizer", "data")]
    known.append(f"seed {fields.get('seed')}")
    return {
        "group": experiment_name(name),
        "job_type": fields.get("job_type"),
        "tags": [str(value) for value in known if value],
    }


def experiment_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a flat configuration that affect training, without the seed."""
    kept = {key: value for key, value in config.items() if kind_of(key).group}
    return {**kept, _CALLBACKS: _active(kept.get(_CALLBACKS) or [])}


def _active(callbacks: Any) -> list[Any] | None:
    """The callbacks that affect training, by class and arguments."""
    found = []
    for entry in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(entry.get("class_path") if isinstance(entry, dict) else entry).rpartition(".")[2]
        if not _OBSERVER.fullmatch(name):
            arguments = entry.get("init_args") if isinstance(entry, dict) else None
            found.append({name: arguments} if arguments else name)
    return found or None


def changes_between(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a resume changes, each as ``[before, now]``."""
    return {
        key: [before[key], config.get(key)]
        for key in sorted(before)
        if before[key] != config.get(key) and kind_of(key).resume
    }


def setting_mismatches(
    config: Mapping[str, Any],
    asked: Mapping[str, Any],
    implied: Mapping[str, Any] = _IMPLIED_SETTINGS,
) -> list[str]:
    """Describes the settings of a run that differ from those asked for.

    Args:
        config: of the run, flat.
        asked: settings, flat.
        implied: values of settings that are not asked for.
    """
    asked = {**implied, **asked}
    if asked.get("trainer.precision") is None:  # the run chose it for its hardware
        asked.pop("trainer.precision", None)
    return [
        f"{key} {config[key]}, asked for {value}"
        for key, value in asked.items()
        if key in config and kind_of(key).claim and not _same(config[key], value)
    ]


def _same(found: object, asked: object) -> bool:
    try:
        return float(found) == float(asked)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(found) == str(asked)
