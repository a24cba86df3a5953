from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable

from experiments.checkpoints import (
    check_model,
    check_training,
    find_checkpoint,
    load_checkpoint,
    training_settings,
)
from experiments.errors import RunError
from lightning_modules import MLP


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
    torch.save({"state_dict": state, "model_class": "MLP"}, tmp_path / "best.ckpt")
    content = load_checkpoint(find_checkpoint(tmp_path, "best"))
    assert content["state_dict"].keys() == state.keys()
    check_model(tmp_path, content, model())


def test_a_weight_too_many_is_named(tmp_path: Path) -> None:
    state = {**model().state_dict(), "extra": torch.zeros(3)}
    with pytest.raises(RunError, match=r"extra is \(3,\) there and missing in the model"):
        check_model(tmp_path, {"state_dict": state}, model())


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
