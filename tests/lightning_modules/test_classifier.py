"""What every model inherits: logged means, confusion matrices, schedules and checkpoints."""

import contextlib
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.cli import LRSchedulerCallable, ReduceLROnPlateau
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from datamodules import BatchSource
from lightning_modules import CNN, MLP, Classifier, LinearSchedule, NumPyMLP

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(10, 3, 32, 32, generator=generator)
LABELS = torch.tensor([0, 1, 2, 2, 1, 0, 2, 2, 1, 2])
MODELS: list[type[Classifier]] = [MLP, NumPyMLP]


class Memory(DummyLogger):
    """Keeps what is logged: (step, metrics)."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.entries.append((step, metrics))


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(
        accelerator="cpu", enable_checkpointing=False, **quiet, **{"logger": False, **options}
    )


def batches(batch_size: int = 4) -> BatchSource:
    """Batches of 4, 4 and 2 images."""
    return BatchSource(IMAGES, LABELS, batch_size=batch_size)


def model(kind: type[Classifier] = MLP, lr: float = 0.0, **options: Any) -> Any:
    """A small model of three classes; by default one that stands still."""
    torch.manual_seed(0)
    size: dict[str, Any] = {} if kind is CNN else {"hidden_units": [5], "weight_std": 0.1}
    return kind(num_classes=3, optimizer=partial(SGD, lr=lr), **size, **options)


def means(net: Classifier, images: slice | list[int]) -> Any:
    """Loss and accuracy of a slice of the images, computed at once."""
    logits, labels = net(IMAGES[images]), LABELS[images]
    accuracy = (logits.argmax(1) == labels).double().mean()
    return pytest.approx((F.cross_entropy(logits, labels).item(), accuracy.item()), rel=1e-5)


def train_entries(memory: Memory) -> list[tuple[int | None, tuple[float, float]]]:
    return [
        (step, (float(entry["train/loss"]), float(entry["train/acc"])))
        for step, entry in memory.entries
        if "train/loss" in entry
    ]


# ---- metrics --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
def test_train_entries_are_means_since_the_last_entry(kind: type[Classifier]) -> None:
    net, memory = model(kind), Memory()
    trainer(max_epochs=2, logger=memory, log_every_n_steps=2).fit(net, batches())
    # Steps 0 to 5 see images 0-3, 4-7, 8-9, 0-3, 4-7, 8-9: unequal batches weigh by their size.
    assert train_entries(memory) == [
        (1, means(net, slice(8))),
        (3, means(net, [8, 9, 0, 1, 2, 3])),
        (5, means(net, slice(4, 10))),
    ]


class OwnStep(MLP):
    """Returns a loss of its own, notes no logits, and skips the batch at ``skips``."""

    skips = -1

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        images, labels = batch
        loss = len(labels) * self(images).square().mean().clamp(max=0) + len(labels)
        return None if batch_idx == self.skips else loss


def test_a_training_step_of_ones_own_logs_its_loss() -> None:
    net, memory = model(OwnStep), Memory()
    trainer(max_epochs=1, logger=memory, log_every_n_steps=3).fit(net, batches())
    (entry,) = [entry for _, entry in memory.entries if "train/loss" in entry]
    assert float(entry["train/loss"]) == pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10)
    assert "train/acc" not in entry


def test_a_training_step_of_ones_own_may_skip_batches() -> None:
    net, memory = model(OwnStep), Memory()
    net.skips = 0
    trainer(max_epochs=1, logger=memory, log_every_n_steps=1).fit(net, batches())
    losses = [float(entry["train/loss"]) for _, entry in memory.entries if "train/loss" in entry]
    assert losses == [4.0, 2.0]


def test_entries_count_optimiser_steps_not_batches() -> None:
    net, memory = model(), Memory()
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "log_every_n_steps": 1}
    trainer(max_epochs=1, logger=memory, **options).fit(net, batches(2))
    assert train_entries(memory) == [
        (0, means(net, slice(4))),
        (1, means(net, slice(4, 8))),
        (2, means(net, slice(8, 10))),  # Lightning steps on an epoch's last batch
    ]


def test_label_smoothing_is_of_the_training_loss_alone() -> None:
    net, memory = model(label_smoothing=0.2), Memory()
    trainer(max_epochs=1, logger=memory, log_every_n_steps=1).fit(net, batches(10))
    ((_, (loss, _)),) = train_entries(memory)
    smoothed = F.cross_entropy(net(IMAGES), LABELS, label_smoothing=0.2).item()
    assert loss == pytest.approx(smoothed, rel=1e-5)
    (tested,) = trainer().test(net, batches(), verbose=False)
    exact = F.cross_entropy(net(IMAGES), LABELS).item()
    assert tested["test/loss"] == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "smoothing", "message"),
    [(MLP, 1.1, "label_smoothing must be 0 to 1"), (NumPyMLP, 0.1, "no label smoothing")],
)
def test_impossible_label_smoothing_is_refused(
    kind: type[Classifier], smoothing: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(label_smoothing=smoothing)


def test_a_second_fit_forgets_what_was_not_logged() -> None:
    net, memory = model(), Memory()
    trainer(max_steps=3, log_every_n_steps=2).fit(net, batches())
    trainer(max_steps=2, logger=memory, log_every_n_steps=2).fit(net, batches())
    assert train_entries(memory) == [(1, means(net, slice(8)))]


class Saving(Callback):
    """Saves at the start and within the hooks of every batch, and may break off there."""

    def __init__(self, folder: Path, fails: bool = False) -> None:
        self.folder = folder
        self.fails = fails

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self.folder / "0.ckpt")

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.fails:
            raise RuntimeError("out of paint")
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")

    def images(self, step: int) -> list[float]:
        """Those of each batch that waits for the log, in the checkpoint of a step."""
        saved = torch.load(self.folder / f"{step}.ckpt", weights_only=True)
        found: list[float] = saved["measured"]["noted"][0, :, 2].tolist()
        return found


def test_a_checkpoint_within_the_hooks_of_a_batch_holds_that_batch(tmp_path: Path) -> None:
    saving = Saving(tmp_path)
    trainer(max_epochs=1, log_every_n_steps=10, callbacks=[saving]).fit(model(), batches())
    assert [saving.images(step) for step in range(4)] == [[], [4], [4, 4], [4, 4, 2]]


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_begins_with_nothing_of_the_one_before(fails: bool, tmp_path: Path) -> None:
    net, saving = model(), Saving(tmp_path, fails)
    first = trainer(max_steps=2, log_every_n_steps=10, callbacks=[saving])
    with pytest.raises(RuntimeError) if fails else contextlib.nullcontext():
        first.fit(net, batches())
    saving.fails = False
    trainer(max_steps=1, log_every_n_steps=10, callbacks=[saving]).fit(net, batches())
    assert [saving.images(step) for step in range(2)] == [[], [4]]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_logs_means_over_all_images(kind: type[Classifier], stage: str) -> None:
    net, run = model(kind), trainer()
    evaluate = run.validate if stage == "validate" else run.test
    for count in (10, 7):  # the second must not remember the first
        data = BatchSource(IMAGES[:count], LABELS[:count], batch_size=4)
        (figures,) = evaluate(net, data, verbose=False)
        assert (figures[f"{stage}/loss"], figures[f"{stage}/acc"]) == means(net, slice(count))
        assert set(figures) == {f"{stage}/loss", f"{stage}/acc"}
        assert net.confusion[stage].sum() == count


def test_confusion_has_true_classes_as_rows() -> None:
    net = model()
    with torch.no_grad():
        net.layers[-1].weight.zero_()
        net.layers[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # always class 1
    trainer().test(net, batches(), verbose=False)
    assert net.confusion["test"].tolist() == [[0, 2, 0], [0, 3, 0], [0, 5, 0]]


def test_predictions_are_probabilities() -> None:
    net = model()
    chunks = trainer().predict(net, BatchSource(IMAGES, batch_size=4)) or []
    torch.testing.assert_close(torch.cat(chunks), net(IMAGES).softmax(1).detach())  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error:.*nan.*:UserWarning")
def test_one_nan_among_the_images_shows_in_the_means() -> None:
    net = model()
    images = IMAGES.clone()
    images[0] = torch.nan
    data = BatchSource(images, LABELS, batch_size=10)
    (figures,) = trainer().test(net, data, verbose=False)
    assert math.isnan(figures["test/loss"])
    with pytest.raises(
        FloatingPointError, match=r"train/loss is nan at step 1 \(epoch 0, batch 0\)"
    ):
        trainer(max_steps=2, log_every_n_steps=1).fit(net, data)


def test_weights_are_not_kept_whose_validation_is_no_number() -> None:
    data = BatchSource(IMAGES * torch.nan, LABELS, batch_size=10)
    with pytest.raises(FloatingPointError, match="val/loss is nan after step 3"):
        trainer(max_epochs=1, num_sanity_val_steps=0).fit(model(), batches(), data)


def test_a_figure_of_a_step_is_logged_once() -> None:
    class Figure(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            if trainer.global_step == 1:
                pl_module.step_figures["lr"] = 0.5

    memory = Memory()
    options: dict[str, Any] = {"logger": memory, "log_every_n_steps": 1, "callbacks": [Figure()]}
    trainer(max_steps=2, **options).fit(model(), batches())
    assert [entry.get("lr") for _, entry in memory.entries if "train/loss" in entry] == [0.5, None]


def test_the_place_of_a_step_decides_what_it_draws() -> None:
    """Seed, epoch, batch and process: each of them, and nothing else."""

    def seed_at(seed: int = 1, epoch: int = 0, batch: int = 0, rank: int = 0) -> int:
        torch.manual_seed(seed)
        net: Any = MLP(hidden_units=[2])
        net.trainer = SimpleNamespace(current_epoch=epoch, global_rank=rank)
        torch.rand(7)
        net.on_train_batch_start(None, batch)
        return torch.initial_seed()

    places: list[dict[str, int]] = [
        {},
        {"seed": 2},
        {"epoch": 1},
        {"batch": 1},
        {"rank": 1},
        {"seed": 2**64 - 1},
    ]
    assert len({seed_at(**place) for place in places}) == len(places)
    assert seed_at(batch=3) == seed_at(batch=3)


# ---- schedules ------------------------------------------------------------------------------


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    """Cuts the rate after every epoch: no loss is ever counted as better."""
    return ReduceLROnPlateau(optimizer, "val/loss", factor=0.1, patience=0, threshold=1.0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    ("interval", "schedule", "rates"),
    [
        ("step", partial(StepLR, step_size=1, gamma=0.5), [0.5**3, 0.5**6]),
        ("epoch", partial(StepLR, step_size=1, gamma=0.5), [0.5, 0.5**2]),
        ("epoch", plateau, [0.1, 0.1**2]),
    ],
)
def test_schedule_counts_what_it_is_told_to(
    kind: type[Classifier], interval: str, schedule: LRSchedulerCallable, rates: list[float]
) -> None:
    for epochs, rate in enumerate(rates, start=1):  # of three steps
        net = model(kind, lr=1.0, lr_scheduler=schedule, lr_interval=interval)
        run = trainer(max_epochs=epochs)
        run.fit(net, batches(), batches())
        assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(rate)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("length", [{"max_epochs": 2}, {"max_steps": 6}])
def test_a_schedule_over_the_whole_fit_ends_with_it(
    kind: type[Classifier], length: dict[str, int]
) -> None:
    net = model(kind, lr=1.0, lr_scheduler=partial(LinearSchedule, end=0.25))
    run = trainer(**length)
    run.fit(net, batches())
    schedule: Any = run.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == 6
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.25)


def test_a_schedule_over_a_fit_without_end_is_an_error() -> None:
    net = model(lr_scheduler=LinearSchedule)
    with pytest.raises(ValueError, match=r"set --trainer\.max_steps or max_epochs"):
        trainer(max_epochs=-1).fit(net, batches())


@pytest.mark.parametrize("kind", MODELS)
def test_plateau_without_its_metric_is_an_error(kind: type[Classifier]) -> None:
    net = model(kind, lr_scheduler=plateau)  # per step, before any validation
    with pytest.raises(Exception, match="val/loss"):
        trainer(max_steps=1).fit(net, batches(), batches())


# ---- arguments and checkpoints --------------------------------------------------------------


@pytest.mark.parametrize("kind", [MLP, NumPyMLP, CNN])
@pytest.mark.parametrize("num_classes", [1, 0, -1])
def test_fewer_than_two_classes_are_refused(kind: type[Classifier], num_classes: int) -> None:
    with pytest.raises(ValueError, match=f"num_classes must be at least 2, got {num_classes}"):
        kind(num_classes=num_classes)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MLP, {"hidden_units": [7, 6], "activation": "tanh", "norm": "layer", "weight_std": None}),
        (NumPyMLP, {"hidden_units": [7, 6], "lr_interval": "epoch"}),
        (CNN, {"block_order": "bn_conv_relu", "final_norm": False}),
    ],
)
def test_checkpoint_holds_plain_data_and_restores_the_model(
    tmp_path: Path, kind: type[Classifier], options: dict[str, Any]
) -> None:
    net = kind(num_classes=3, lr_scheduler=partial(StepLR, step_size=1), **options)
    run = trainer(max_steps=1)
    run.fit(net, batches())
    run.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["model_class"] == kind.__name__
    loaded = kind.load_from_checkpoint(tmp_path / "a.ckpt", map_location="cpu").eval()
    assert {name: loaded.hparams[name] for name in options} == options
    logits: Tensor = loaded(IMAGES)
    torch.testing.assert_close(logits, net.eval()(IMAGES))


def test_a_fit_that_goes_on_knows_the_last_validation(tmp_path: Path) -> None:
    net = model()
    first = trainer(max_steps=3)
    first.fit(net, batches(), batches())
    first.save_checkpoint(tmp_path / "a.ckpt")
    second = model()
    second.on_load_checkpoint(torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert torch.equal(second.confusion["val"], net.confusion["val"])


@pytest.mark.parametrize("kind", [MLP, NumPyMLP, CNN])
def test_the_seed_decides_the_weights(kind: type[Classifier]) -> None:
    nets = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        nets.append(torch.cat([p.detach().flatten() for p in kind().parameters()]))
    assert torch.equal(nets[0], nets[1])
    assert not torch.equal(nets[0], nets[2])
