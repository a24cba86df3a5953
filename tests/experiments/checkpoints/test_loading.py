from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable

from experiments.checkpoints.loading import (
    check_model,
    check_training,
    find_checkpoint,
    load_checkpoint,
    training_settings,
)
from experiments.errors import RunError
from lightning_modules import MLP
from tests.conftest import SHORT, Cli, mark_slow


def model(
    optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.1),
    scheduler: LRSchedulerCallable | None = None,
) -> MLP:
    return MLP(hidden_units=[2], optimizer=optimizer, lr_scheduler=scheduler)


@pytest.mark.parametrize(
    ("kept", "known"), [([], "it has none"), (["last", "other"], "it has last, other")]
)
def test_a_missing_checkpoint_lists_the_others(kept: list[str], known: str, tmp_path: Path) -> None:
    for name in kept:
        (tmp_path / f"{name}.ckpt").touch()
    with pytest.raises(RunError, match=f"no checkpoint best.ckpt: {known}"):
        find_checkpoint(tmp_path, "best")


def test_a_whole_checkpoint_is_read(tmp_path: Path) -> None:
    state = model().state_dict()
    content = {"state_dict": state, "model_class": "MLP", "global_step": 1}
    torch.save(content, tmp_path / "best.ckpt")
    found = load_checkpoint(find_checkpoint(tmp_path, "best"))
    assert found["state_dict"].keys() == state.keys()
    check_model(tmp_path, found, model())


def test_a_weight_too_many_is_named(tmp_path: Path) -> None:
    state = {**model().state_dict(), "extra": torch.zeros(3)}
    with pytest.raises(RunError, match=r"extra is \(3,\) there and missing in the model"):
        check_model(tmp_path, {"state_dict": state}, model())


BIAS = "layers.1.bias"
FOREIGN: list[tuple[Any, str]] = [
    ("a text", "no tensor but a str there"),
    (None, "no tensor but a NoneType there"),
    ([0.0, 0.0], "no tensor but a list there"),
    (torch.tensor([0.0, torch.nan]), "layers.1.bias holds numbers that are not finite"),
    (torch.tensor([0.0, -torch.inf]), "layers.1.bias holds numbers that are not finite"),
    (torch.tensor([1, 2]), "another kind .torch.int64"),
    (torch.tensor([1j, 2j]), "another kind .torch.complex64"),
    (torch.tensor([0.0, 1.0]).to_sparse(), "another kind .torch.float32, torch.sparse_coo"),
    (torch.zeros(2, device="meta"), "another kind .* meta"),
    (torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), "is nested there"),
]


@pytest.mark.parametrize(("weight", "what"), FOREIGN)
def test_a_weight_that_is_none_is_named(weight: Any, what: str) -> None:
    state = {**model().state_dict(), BIAS: weight}
    with pytest.raises(RunError, match=what):
        check_model(Path("a.ckpt"), {"state_dict": state}, model())


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("state_dict", [1], "its state_dict is of type list"),
        ("global_step", "7", "its global_step is of type str"),
        ("global_step", True, "its global_step is of type bool"),
        ("model_class", 7, "its model_class is of type int"),
        ("training", {"optimizer": "SGD"}, "its training has no settings"),
        ("training", [], "its training is of type list"),
        ("measured", {"noted": None}, "its measured.noted is of type NoneType"),
        ("CIFAR10DataModule", {}, "its CIFAR10DataModule has no normalization"),
        (
            "CIFAR10DataModule",
            {"normalization": "channel", "label_names": "abc"},
            "its CIFAR10DataModule.label_names is of type str",
        ),
    ],
)
def test_what_a_checkpoint_lacks_is_named(key: str, value: Any, what: str, tmp_path: Path) -> None:
    content = {"state_dict": {}, "global_step": 1, key: value}
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(RunError, match=f"no checkpoint of this project: {what}"):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("content", "what"),
    [([1], "list, not a dict"), ({"state_dict": {}}, "it has no global_step"), ({}, "state_dict")],
)
def test_a_file_of_something_else_is_named(content: Any, what: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(RunError, match=f"no checkpoint of Lightning: .*{what}"):
        load_checkpoint(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    "command", mark_slow(["validate", "test", "predict", "fit"], except_for=["test", "fit"])
)
def test_weights_that_are_not_numbers_are_used_for_nothing(
    command: str, fit: Cli, error_of: Callable[[list[str]], str], synthetic: list[str]
) -> None:
    run = fit("--model=MLP", "--model.hidden_units=[2]").path
    broken = torch.load(run / "best.ckpt", weights_only=True)
    broken["state_dict"][BIAS][0] = torch.nan
    torch.save(broken, run / "broken.ckpt")
    before = {path: path.stat().st_mtime_ns for path in run.iterdir()}
    places = [f"--runs_dir={run.parent}", f"--ckpt_path={run / 'broken.ckpt'}"]
    options = ["--model=MLP", "--model.hidden_units=[2]", *SHORT, *synthetic, "--name=other"]
    args = options if command == "fit" else ["--name=run"]
    message = error_of([command, *places, *args, "--trainer.logger=false"])
    assert f"broken.ckpt is of no use: {BIAS} holds numbers that are not finite" in message
    assert "take another with --ckpt_path" in message
    assert {path: path.stat().st_mtime_ns for path in run.iterdir()} == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_settings_of_the_training_are_plain() -> None:
    scheduled = model(scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 500, gamma=0.5))
    settings = training_settings(scheduled)
    assert (settings["optimizer"], settings["settings"]["lr"]) == ("SGD", 0.1)
    assert settings["schedule"] == "StepLR(gamma=0.5, step_size=500)"
    assert training_settings(model())["schedule"] == "none"


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (model(lambda p: torch.optim.Adam(p, lr=0.1)), "optimizer SGD, but Adam"),
        (
            model(scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
            r"schedule none, but ExponentialLR\(gamma=0.9\)",
        ),
    ],
)
def test_another_kind_of_training_is_refused(other: MLP, what: str) -> None:
    checkpoint: dict[str, Any] = {"training": training_settings(model())}
    with pytest.raises(RunError, match=what):
        check_training(Path("a.ckpt"), checkpoint, training_settings(other))


def test_another_learning_rate_and_an_older_checkpoint_are_accepted() -> None:
    faster = training_settings(model(lambda p: torch.optim.SGD(p, lr=0.5)))
    check_training(Path("a.ckpt"), {"training": training_settings(model())}, faster)
    check_training(Path("a.ckpt"), {}, faster)
