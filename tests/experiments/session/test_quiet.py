"""Hooks that nobody wrote are left out of a step; every other one runs."""

from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.profilers import SimpleProfiler

from datamodules import BatchSource
from experiments.session.quiet import NoProfiler, skip_idle_hooks
from lightning_modules import MLP


class Listening(Callback):
    """Writes down which of its hooks were called."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_before_zero_grad(self, *args: Any) -> None:
        self.heard.append("before_zero_grad")

    def on_train_batch_end(self, *args: Any) -> None:
        self.heard.append("batch_end")


class Counting(MLP):
    """Counts its own batches."""

    started = 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.started += 1


def fitted(*callbacks: Callback, **options: Any) -> tuple[Trainer, Counting]:
    """A trainer after three slim steps, and its model."""
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[*callbacks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    model = Counting(hidden_units=[2])
    skip_idle_hooks(trainer, model)
    batches = BatchSource(torch.zeros(6, 3, 32, 32), torch.zeros(6).long(), batch_size=2)
    trainer.fit(model, batches)
    return trainer, model


def test_hooks_that_are_written_run() -> None:
    callback = Listening()
    _, model = fitted(callback)
    assert callback.heard == ["before_zero_grad", "batch_end"] * 3
    assert model.started == 3


def test_hooks_that_are_not_written_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name in ("on_before_backward", "on_train_batch_start"):
        monkeypatch.setattr(Callback, name, lambda *a, name=name: called.append(name))
    fitted(Listening())
    assert called == []


def test_a_profiler_that_is_asked_for_stays() -> None:
    profiler = SimpleProfiler()
    trainer, _ = fitted(profiler=profiler)
    assert trainer.profiler is profiler  # type: ignore[attr-defined]
    assert "run_training_batch" in profiler.summary()
    trainer, _ = fitted()
    assert isinstance(trainer.profiler, NoProfiler)  # type: ignore[attr-defined]


def test_gradients_are_clipped_where_that_is_asked_for() -> None:
    def moved(**options: Any) -> float:
        *_, bias = fitted(**options)[1].parameters()  # began at 0
        return float(bias.detach().abs().max())

    assert 0 < moved(gradient_clip_val=1e-9) < 1e-9 < moved()
