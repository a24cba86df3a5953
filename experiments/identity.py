"""Whether two runs are of the same experiment: what each setting means for it, in one table.

Settings go by flat keys: ``model.norm``, not ``model.init_args.norm`` (see `runs.flat`).
"""

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What people write for the learning rate, and where configurations have it.
LEARNING_RATE = "model.lr"
LEARNING_RATE_LONG = "model.init_args.optimizer.init_args.lr"
MAX_TIME = "trainer.max_time"  # what stopped a run begins so if it was this limit


@dataclass(frozen=True)
class Kind:
    """What it means for two runs that they differ in a setting: by default, another experiment.

    Attributes:
        name: the name that a run gets by default says it, if a flag does.
        group: they are no repeats of each other, which `compare` shows as one.
        resume: a run that goes on with it changed is told so, and its record says it.
        claim: ``reproduce.py`` can't take the one for the other.
        figures: the same weights give other figures of the same images.
        validation: they validate on other images.
    """

    name: bool = True
    group: bool = True
    resume: bool = True
    claim: bool = True
    figures: bool = False
    validation: bool = False


_CIRCUMSTANCE = Kind(name=False, group=False, resume=False, claim=False)
# Patterns of keys; the first that matches counts.
TABLE: tuple[tuple[str, Kind], ...] = (
    # Where a run lies, how it is started and watched; `run` is what W&B has of its record.
    (r"name|config|overwrite|resume|trust_run|save_every_min|ckpt_path", _CIRCUMSTANCE),
    (r"runs_dir|test_after_fit|data\.data_dir|trainer\.logger.*|run\..*", _CIRCUMSTANCE),
    (r"data\.download|trainer\.(default_root_dir|enable_.*)", Kind(name=False, group=False)),
    # Seeds: in a name, that of everything has a place of its own.
    (r"seed_everything", Kind(name=False, group=False)),
    (r"data\.seed", Kind(group=False)),
    # A run may go on beyond its limits.
    (r"trainer\.max_(steps|epochs)", Kind(resume=False)),
    (r"trainer\.max_time(\.\w+)?", Kind(group=False, resume=False)),  # unless it stopped the run
    (r"trainer\.(accelerator|devices|strategy|num_nodes|log_every_n_steps)", Kind(name=False)),
    (r"data\.predict_dir", Kind(name=False)),
    # The images; a name says by itself that they were generated.
    (r"data(\.(source|synthetic_images))?", Kind(name=False, figures=True, validation=True)),
    (r"data\.(val_size|split_seed)|trainer\.(limit_val|overfit)_batches", Kind(validation=True)),
    (r"trainer\.callbacks", Kind(claim=False)),  # a claim has its own
    # The network, but for what only trains it; in a name, its class has a place of its own.
    (r"model\.(optimizer|lr_scheduler|lr_interval|label_smoothing)(\..*)?", Kind()),
    (r"model\..*|data\.normalization|trainer\.precision", Kind(figures=True)),
    (r"model", Kind(name=False, figures=True)),
    (r"\w+", Kind(name=False)),  # options of a command
)
_CALLBACKS = "trainer.callbacks"
# Callbacks that look on; others, such as an average of the weights, make another experiment.
_OBSERVER = re.compile(r"\w*(ProgressBar|Monitor|Summary|Statistics)|CurveOnTest")
# What a run has where neither its files nor a flag say anything: a flag left out is seen, too.
_IMPLIED_SETTINGS: Mapping[str, Any] = {
    "data.source": "cifar10",
    **dict.fromkeys(f"trainer.limit_{kind}_batches" for kind in ("train", "val", "test")),
}
_LONGEST = 80  # characters of a name; seed and time come after them
_OVERLAYS = {"data", "trainer", "logger"}  # folders of configs that say where, not what
# What names of runs end in: a seed, a time, a count of the same time.
_SEED_AND_TIME = re.compile(r"(-s\d+)?(-\d{8}-\d{6}(-\d+)?)?$")


@functools.cache
def kind_of(key: str) -> Kind:
    """What a setting means, by its flat key."""
    return next((kind for keys, kind in TABLE if re.fullmatch(keys, key)), Kind())


def flat_key(key: str) -> str:
    """A key of a flag or a config file as flat configurations have it.

    ``model.init_args.norm`` is ``model.norm``, ``model.lr`` is ``model.optimizer.lr``.
    """
    return (LEARNING_RATE_LONG if key == LEARNING_RATE else key).replace(".init_args.", ".")


def expand_learning_rate(argument: str) -> str:
    """Writes out ``--model.lr`` and ``--model.lr=VALUE``; leaves other arguments as they are."""
    flag, equals, value = argument.partition("=")
    return f"--{LEARNING_RATE_LONG}{equals}{value}" if flag == f"--{LEARNING_RATE}" else argument


def flags_of(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Reads flags and their values, as ``--key value`` or ``--key=value``.

    Args:
        arguments: those of a command; what stands before the first flag is left out.

    Returns:
        Keys without dashes, with values; an empty one for a flag without.

    Raises:
        ValueError: for a word after the first flag that is no flag's value.
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


def experiment_of(arguments: Sequence[str]) -> str:
    """The name of an experiment: its config files, and the flags that change it.

    ``fit --config configs/mlp.yaml --model.lr 0.01`` is ``mlp-lr_0.01``.

    Args:
        arguments: those of the command, short forms allowed.

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
        f"{key.rpartition('.')[2]}_{_word(value)}"
        for key, value in last.items()
        if kind_of(key).name
    )
    name = "-".join(map(_word, parts)) or "run"
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - len(digest) - 1]}-{digest}"


def _word(text: str) -> str:
    """Leaves only what any file system takes."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("_.")


def experiment_name(name: str) -> str:
    """The name that runs of one experiment share: a run's name without seed and time."""
    return _SEED_AND_TIME.sub("", name) or name


def experiment_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a flat configuration decides how well a network learns, but for the seed."""
    kept = {key: value for key, value in config.items() if kind_of(key).group}
    return {**kept, _CALLBACKS: _active(kept.get(_CALLBACKS) or [])}


def _active(callbacks: Any) -> list[Any] | None:
    """The callbacks that take part in a training, by class and arguments."""
    found = []
    for entry in callbacks if isinstance(callbacks, list) else [callbacks]:
        name = str(entry.get("class_path") if isinstance(entry, dict) else entry).rpartition(".")[2]
        if not _OBSERVER.fullmatch(name):
            arguments = entry.get("init_args") if isinstance(entry, dict) else None
            found.append({name: arguments} if arguments else name)
    return found or None


def changes_between(before: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """In what a run that goes on differs from what it was: settings, each as it was and is now."""
    return {
        key: [before[key], config.get(key)]
        for key in sorted(before)
        if before[key] != config.get(key) and kind_of(key).resume
    }


def setting_mismatches(config: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """In what a run's flat configuration is not what a claim asks for, or as by default."""
    asked = {**_IMPLIED_SETTINGS, **asked}
    if asked.get("trainer.precision") is None:  # chosen by the hardware; the run has the choice
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
