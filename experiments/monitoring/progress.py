"""The progress of a run: bar, learning rate, throughput."""

import shutil
import sys
import time
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from tqdm import tqdm

from experiments.monitoring.compute import ComputeCount
from lightning_modules.classifier import Classifier, is_log_step
from lightning_modules.schedules import steps_of_fit


class RunProgressBar(ProgressBar):
    """One bar for a whole fit, test or prediction; without a terminal, lines of text.

    Args:
        stream_is_terminal: draw a bar (default: whether standard error is a terminal).
    """

    def __init__(self, stream_is_terminal: bool | None = None) -> None:
        super().__init__()
        self._terminal = sys.stderr.isatty() if stream_is_terminal is None else stream_is_terminal
        self._bar: Any = None
        self._enabled = True
        self._logged = False

    def disable(self) -> None:
        """Turns the bar off in all processes except the first."""
        self._enabled = False

    def _open(self, description: str, total: float, done: int = 0) -> None:
        self._bar = tqdm(
            total=None if total == float("inf") else int(total),
            initial=done,
            desc=description,
            disable=not (self._enabled and self._terminal),
            mininterval=0.2,
            leave=False,
            ncols=shutil.get_terminal_size().columns,  # tqdm draws nothing for a width of 0
            bar_format="{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed}<{remaining}{postfix}",
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over all optimiser steps."""
        self._open("fit", steps_of_fit(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advances the bar; new figures appear one step after each log entry."""
        if self._logged and not self._bar.disable:
            self._bar.set_postfix_str(_figures(self.get_metrics(trainer, pl_module)), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)
        self._logged = is_log_step(trainer)  # the model's hook, which logs, is called later

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Without a bar, prints a line for each validation."""
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking
        if fitting and self._enabled and not self._terminal:
            total = steps_of_fit(trainer)
            figures = _figures(self.get_metrics(trainer, pl_module))
            print(f"step {trainer.global_step}/{total:.0f}  {figures}", file=sys.stderr, flush=True)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over the test batches."""
        self._open("test", sum(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Opens the bar over the batches to predict."""
        self._open("predict", sum(trainer.num_predict_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advances the bar."""
        self._bar.update()

    on_predict_batch_end = on_test_batch_end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Closes the bar."""
        self._bar.close()

    on_test_end = on_predict_end = on_train_end


# Short names in this order, so that a terminal of 80 columns shows all of them.
_SHOWN = {"val/acc": "val", "train/loss": "loss", "train/acc": "acc", "images_per_s": "img/s"}


def _figures(metrics: dict[str, Any]) -> str:
    known = [(short, metrics[key]) for key, short in _SHOWN.items() if key in metrics]
    return "  ".join(
        f"{key} {value:,.0f}" if abs(value) >= 100 else f"{key} {value:.4f}" for key, value in known
    )


class TrainMonitor(Callback):
    """Logs the learning rate and the throughput in images/s with each log entry.

    Attributes:
        seconds: time of the training steps, without validation; a resumed fit continues the count.
        images: number of trained images; a resumed fit continues the count.
        started: whether training has started.
        figures: at the end of a fit: the number of images in an epoch, and the loss and accuracy of
            training if the fit was too short for a log entry.
        peak_gpu_bytes: the peak GPU memory of the fit; None without a GPU.
        compute: the floating-point operations; a resumed fit continues the count.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self.compute = ComputeCount()
        self.started = False
        self.figures: dict[str, float] = {}
        self.peak_gpu_bytes: int | None = None
        self._since = (0.0, 0)
        self._mark = 0.0

    def _lap(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    def _stop(self, device: torch.device) -> None:
        """Stops the clock after the GPU has finished its queued steps."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            self.peak_gpu_bytes = torch.cuda.max_memory_allocated(device)
        self._lap()

    def state_dict(self) -> dict[str, Any]:
        """The counts for a checkpoint, so that a resumed fit continues them."""
        return {"seconds": self.seconds, "images": self.images, "flops": self.compute.flops}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the counts of a checkpoint."""
        self.seconds, self.images = state_dict["seconds"], state_dict["images"]
        self.compute.flops = state_dict.get("flops")  # older checkpoints have none

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self.started = True
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
        self._since = (self.seconds, self.images)
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        self._mark = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock."""
        self._stop(pl_module.device)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects the figures that no log entry has."""
        assert isinstance(pl_module, Classifier)
        self.figures["train/images"] = self._images_of_epoch(trainer)
        if trainer.global_step < trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self.figures.update(pl_module.unlogged())

    def _images_of_epoch(self, trainer: Trainer) -> int:
        """Number of images in an epoch: all, unless batches were limited or it was not finished."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        whole, batches = len(data.train_set.labels), trainer.num_training_batches
        if batches < len(cast(Any, trainer.train_dataloader)):
            whole = int(batches) * data.batch_size * trainer.world_size
        return min(whole, self.images)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Counts images and operations; logs if the trainer logs this step."""
        assert isinstance(pl_module, Classifier)
        self.images += len(batch[0]) * trainer.world_size
        before = self.compute.seconds
        self.compute.add(pl_module, batch[0], trainer.world_size)
        self._mark += self.compute.seconds - before
        if is_log_step(trainer):
            self._lap()
            seconds, images = self.seconds - self._since[0], self.images - self._since[1]
            self._since = (self.seconds, self.images)
            pl_module.step_figures["images_per_s"] = images / seconds
            pl_module.step_figures["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
