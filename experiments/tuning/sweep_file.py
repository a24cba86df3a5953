"""Reads the YAML file of a W&B sweep into a search space of Optuna."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.identity import as_flag, flags_of
from experiments.records.reader import read_config

SEEDS = "seed_everything"
_SET = "the sweep sets it for each run"
_NEW = "every run of a sweep is trained anew"
# Flags of fit that a sweep does not take, and why.
_REFUSED = {
    **dict.fromkeys(("name", "runs_dir", "resume", "overwrite", SEEDS, "test_after_fit"), _SET),
    **dict.fromkeys(("ckpt_path", "init_from"), _NEW),
    "print_config": "a sweep trains; python cli.py fit prints a configuration",
    "trainer.fast_dev_run": "it keeps no run to compare",
    "trust_run": "it is for a run from somebody else, and a sweep makes its own",
}
_MOST_POINTS = 10_000  # of a grid
_METHODS = ("grid", "random", "bayes")
_KEYS = {
    *("program", "project", "entity", "name", "description", "method", "metric", "parameters"),
    *("command", "early_terminate", "run_cap"),
}
# What W&B puts in front of the arguments; here, this project's own command line is called.
_START = ("${env}", "${interpreter}", "${program}")
_ETA = 3  # W&B's factor between the rungs of a hyperband
_DISTRIBUTIONS = "constant, categorical, int_uniform, uniform, q_uniform, log_uniform_values"


@dataclass(frozen=True)
class Halving:
    """Successive halving: at each rung, only the best of all points go on.

    Attributes:
        first: number of validations before the first rung.
        factor: of each rung to the one before, and of points to those that go on.
    """

    first: int
    factor: int


@dataclass(frozen=True)
class Sweep:
    """A search over flags of ``fit`` and seeds.

    Attributes:
        method: ``grid``, ``random`` or ``bayes``.
        metric: what is optimised, such as ``val/acc``.
        is_maximised: whether larger values are better.
        space: the values of each flag.
        seeds: seeds that each point is trained with.
        words: arguments of ``fit`` that all points share, without ``${args}``.
        halving: how weak points are stopped early; None for never.
        count: number of points, if the file gives it.
    """

    method: str
    metric: str
    is_maximised: bool
    space: Mapping[str, BaseDistribution]
    seeds: Sequence[int]
    words: Sequence[str]
    halving: Halving | None
    count: int | None


def read_sweep(path: Path) -> Sweep:
    """Reads a sweep.

    Args:
        path: a file as ``wandb sweep`` takes it.

    Raises:
        OSError: if the file can't be read.
        ValueError: naming the file and what is wrong or means something else here.
    """
    try:
        return _sweep(read_config(path))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _sweep(content: Mapping[str, Any]) -> Sweep:
    if not isinstance(content.get("parameters"), dict):
        raise ValueError("no sweep: expected method, metric and parameters")
    if unknown := sorted(map(str, content.keys() - _KEYS)):
        raise ValueError(f"unknown key {unknown[0]!r}: leave it out; known are {_listed(_KEYS)}")
    method = _one_of("method", content.get("method"), _METHODS)
    metric = content.get("metric") or {}
    name, goal = (metric.get(key) if isinstance(metric, dict) else None for key in ("name", "goal"))
    if name not in ("val/acc", "val/loss"):
        raise ValueError(
            f"metric.name must be val/acc or val/loss, got {name}: the test set is not for choosing"
        )
    goal = _one_of("metric.goal", goal or "minimize", ("minimize", "maximize"))
    parameters = {str(key): value for key, value in content["parameters"].items()}
    seeds = _seeds(parameters.pop(SEEDS, {"value": 42}))
    words, halving = _words(content.get("command")), _halving(content.get("early_terminate"))
    check_flags([*parameters, *(key for key, _ in flags_of(words))])
    space = {key: distribution(key, options) for key, options in parameters.items()}
    ranges = [key for key, found in space.items() if isinstance(found, FloatDistribution)]
    if method == "grid" and (points := grid_size(space)) > _MOST_POINTS:
        raise ValueError(
            f"the grid has {points:,} points, at most {_MOST_POINTS:,}: use fewer values"
        )
    if method == "grid" and ranges:
        raise ValueError(f"{ranges[0]}: a grid needs values, not a range; or choose method random")
    count = None if content.get("run_cap") is None else _positive("run_cap", content["run_cap"])
    return Sweep(method, name, goal == "maximize", space, seeds, words, halving, count)


def grid_size(space: Mapping[str, BaseDistribution]) -> int:
    """The number of points of a grid."""
    return math.prod(map(_choices, space.values()))


def _choices(kind: BaseDistribution) -> int:
    """The number of values, 1 for a range of numbers."""
    if isinstance(kind, IntDistribution):
        return kind.high - kind.low + 1
    return len(kind.choices) if isinstance(kind, CategoricalDistribution) else 1


def check_flags(keys: Iterable[str]) -> None:
    """Refuses flags that a sweep sets for each run, or that suit no sweep.

    Raises:
        ValueError: naming the first one.
    """
    if wrong := sorted(_REFUSED.keys() & {*keys}):
        raise ValueError(f"leave {wrong[0]} out: {_REFUSED[wrong[0]]}")


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def _one_of(key: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError(f"{key} must be one of {', '.join(known)}, got {value}")
    return str(value)


def _positive(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value}")
    return value


def _seeds(options: Any) -> list[int]:
    """The seeds of a point: ``value`` or ``values``."""
    given = options if isinstance(options, dict) else {}
    seeds = given.get("values", [given.get("value")])
    if not isinstance(seeds, list) or not all(_is_seed(seed) for seed in seeds):
        raise ValueError(f"{SEEDS}: give the seeds as values, such as [0, 1, 2], got {options}")
    return list(dict.fromkeys(seeds))


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


def distribution(key: str, options: Any) -> BaseDistribution:
    """The values of a parameter, with W&B's rules for those that name no distribution.

    Values of a list are flags as text: ``"[200, 100]"``.

    Args:
        key: the parameter, for messages.
        options: W&B's options: ``value``, ``values``, ``min``, ``max``, ``distribution``, ``q``.

    Raises:
        ValueError: for options that are missing, wrong or not known here.
    """
    if not isinstance(options, dict):
        raise ValueError(f"{key}: expected value, values, or min and max, got {options}")
    if unknown := options.keys() - {"value", "values", "min", "max", "distribution", "q"}:
        raise ValueError(f"{key}: unknown option {_listed(map(str, unknown))}: leave it out")
    if "value" in options or "values" in options:
        values = options.get("values", [options.get("value")])
        if not isinstance(values, list) or not values:
            raise ValueError(f"{key}: values must be a list, got {values}")
        return CategoricalDistribution(list(dict.fromkeys(map(as_flag, values))))
    low, high = (_number(key, name, options.get(name)) for name in ("min", "max"))
    if not low < high:
        raise ValueError(f"{key}: min must be below max, got {low} and {high}")
    whole = isinstance(low, int) and isinstance(high, int)
    kind = options.get("distribution", "int_uniform" if whole else "uniform")
    if kind == "int_uniform" and whole:
        return IntDistribution(int(low), int(high))
    if kind == "uniform":
        return FloatDistribution(low, high)
    if kind == "q_uniform":
        return FloatDistribution(low, high, step=_number(key, "q", options.get("q", 1)))
    if kind == "log_uniform_values" and low > 0:
        return FloatDistribution(low, high, log=True)
    raise ValueError(
        f"{key}: distribution {kind} from {low} to {high} is not known here: take one of "
        f"{_DISTRIBUTIONS}"
    )


def _number(key: str, name: str, value: Any) -> int | float:
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}: expected a number for {name}, got {value}")
    return value


def _words(command: Any) -> list[str]:
    """The arguments of ``fit`` in W&B's ``command``, without those of the parameters."""
    words = [*_START, "fit", "${args}"] if command is None else command
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("command: expected a list of words")
    rest = [word for word in words if word not in {*_START, "${args}"}]
    if rest[:1] != ["fit"] or "${args}" not in words:
        raise ValueError("command: expected ${program}, fit, flags and ${args}")
    if macros := [word for word in rest if "${" in word]:
        raise ValueError(f"command: {macros[0]} is not known here: leave it out")
    return rest[1:]


def _halving(options: Any) -> Halving | None:
    """W&B's ``early_terminate``: the first rung, or the last one and the number of rungs."""
    if options is None:
        return None
    if not isinstance(options, dict) or options.get("type") != "hyperband":
        raise ValueError("early_terminate.type must be hyperband")
    factor = _positive("early_terminate.eta", options.get("eta", _ETA))
    if factor < 2:
        raise ValueError("early_terminate.eta must be at least 2, got 1")
    if "min_iter" in options:
        return Halving(_positive("early_terminate.min_iter", options["min_iter"]), factor)
    last = _positive("early_terminate.max_iter", options.get("max_iter"))
    rungs = min(_positive("early_terminate.s", options.get("s", 1)), 32)  # 2^32 validations
    return Halving(max(1, last // factor**rungs), factor)
