"""Sweep files: W&B's rules for parameters, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from experiments.tuning.sweep_file import Halving, distribution, read_sweep
from tests.conftest import PROJECT

SWEEP: dict[str, Any] = {
    "method": "random",
    "metric": {"name": "val/acc", "goal": "maximize"},
    "parameters": {"model.lr": {"values": [0.1, 0.2]}},
}


def read(folder: Path, **changes: Any) -> Any:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return read_sweep(path)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"value": 3}, CategoricalDistribution(["3"])),
        ({"values": ["elu", None, True, [20, 10]]},
         CategoricalDistribution(["elu", "null", "true", "[20, 10]"])),
        ({"min": 1, "max": 5}, IntDistribution(1, 5)),
        ({"min": 0.0, "max": 5}, FloatDistribution(0, 5)),
        ({"min": "1e-4", "max": 1}, FloatDistribution(1e-4, 1)),  # YAML 1.1 reads text
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.25},
         FloatDistribution(0, 1, step=0.25)),
        ({"distribution": "log_uniform_values", "min": 0.001, "max": 1},
         FloatDistribution(0.001, 1, log=True)),
    ],
)  # fmt: skip
def test_a_parameter_means_what_it_means_to_wandb(
    options: dict[str, Any], expected: BaseDistribution
) -> None:
    assert distribution("model.lr", options) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (3, "expected value, values, or min and max, got 3"),
        ({"values": []}, "values must be a list"),
        ({"values": "elu"}, "values must be a list"),
        ({"min": 2, "max": 1}, "min must be below max, got 2 and 1"),
        ({"min": 2}, "expected a number for max, got None"),
        ({"min": float("nan"), "max": 1}, "expected a number for min, got nan"),
        ({"values": [1, 2], "probabilities": [0.1, 0.9]}, "unknown option probabilities"),
        ({"parameters": {"a": {"value": 1}}}, "unknown option parameters"),
        ({"distribution": "normal", "min": 0, "max": 1}, "distribution normal"),
        ({"distribution": "log_uniform", "min": -2, "max": 1}, "distribution log_uniform"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, "from 0 to 1"),
    ],
)
def test_a_parameter_that_means_something_else_here_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        distribution("model.lr", options)
    assert str(error.value).startswith("model.lr: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "magic"}, "method must be one of grid, random, bayes, got magic"),
        ({"parameters": []}, "no sweep: expected method, metric and parameters"),
        ({"metric": {"name": "test/acc"}}, "the test set is not for choosing"),
        ({"metric": {"name": "val/acc", "goal": "up"}}, "metric.goal must be one of"),
        ({"metric": "val/acc"}, "metric.name must be val/acc or val/loss"),
        ({"parameter": {}}, "unknown key 'parameter'"),
        ({"parameters": {"seed_everything": {"min": 0, "max": 3}}}, "give the seeds as values"),
        ({"parameters": {"seed_everything": {"values": [0, -1]}}}, "give the seeds as values"),
        ({"method": "grid", "parameters": {"model.lr": {"min": 0.1, "max": 1}}}, "a grid needs"),
        (
            {"method": "grid", "parameters": {"data.seed": {"min": 0, "max": 10**12}}},
            "at most 10,000",
        ),
        ({"metric": {"name": ["val/acc"]}}, "metric.name must be val/acc or val/loss"),
        ({"parameters": {"seed_everything": {"value": 2**32}}}, "give the seeds as values"),
        ({"run_cap": 0}, "run_cap must be a positive integer, got 0"),
        ({"command": ["python", "train.py", "${args}"]}, "expected .* fit, flags and"),
        ({"command": ["${program}", "fit"]}, "expected .* fit, flags and"),
        ({"command": ["${program}", "fit", "${args_json}", "${args}"]}, "args_json} is not known"),
        (
            {"command": ["${program}", "fit", "--test_after_fit=true", "${args}"]},
            "leave test_after_fit out",
        ),
        ({"command": ["${program}", "fit", "--seed_everything", "1", "${args}"]}, "leave seed_eve"),
        ({"parameters": {"name": {"values": ["a", "b"]}}}, "leave name out: the sweep sets it"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type must be hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate.max_iter must be a positive"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, "eta must be at lea"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path, **changes)
    assert str(error.value).startswith(f"{tmp_path}/sweep.yaml: ")


@pytest.mark.parametrize(
    ("options", "halving"),
    [
        ({"min_iter": 5}, Halving(5, 3)),
        ({"max_iter": 27, "s": 2}, Halving(3, 3)),
        ({"max_iter": 16, "s": 2, "eta": 2}, Halving(4, 2)),
    ],
)
def test_hyperband_is_read_by_its_first_or_last_rung(
    options: dict[str, Any], halving: Halving, tmp_path: Path
) -> None:
    assert read(tmp_path, early_terminate={"type": "hyperband", **options}).halving == halving


def test_seeds_are_no_parameter(tmp_path: Path) -> None:
    seeds = {"seed_everything": {"values": [3, 1, 3]}}
    sweep = read(tmp_path, parameters={**SWEEP["parameters"], **seeds})
    assert sweep.seeds == [3, 1]
    assert [*sweep.space] == ["model.lr"]


@pytest.mark.parametrize(
    "path", sorted(PROJECT.glob("configs/sweeps/*.yaml")), ids=lambda p: p.stem
)
def test_the_sweeps_of_this_project_are_read(path: Path) -> None:
    sweep = read_sweep(path)
    assert sweep.is_maximised
    assert "--config=configs/mlp_deep.yaml" in sweep.words
