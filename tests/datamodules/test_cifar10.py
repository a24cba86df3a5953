"""The data module: which data, which split, which statistics, and how it works with a Trainer."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from datamodules import CIFAR10DataModule, DatasetError, sources
from datamodules.cifar10 import stratified_split
from datamodules.files import CIFAR10, ImageSet
from datamodules.synthetic import SYNTHETIC_LABELS, write_synthetic
from datamodules.transforms import Normalization
from tests.conftest import passing_for

IMAGES = 200  # in each file of the data_dir fixture
NORMALIZATIONS: list[Normalization] = ["mean_image", "mean_image_std", "channel"]


def module(data_dir: Path, **options: Any) -> CIFAR10DataModule:
    """A data module that has read the small synthetic set."""
    small = {"source": "synthetic", "synthetic_images": IMAGES, "val_size": 100, "batch_size": 50}
    made = CIFAR10DataModule(str(data_dir), **{**small, **options})
    made.setup()
    return made


def real(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes a small set that passes for the official CIFAR-10."""
    folder = root / CIFAR10.folder
    write_synthetic(folder, images_per_batch=10, seed=1)
    monkeypatch.setattr(CIFAR10DataModule, "official", passing_for(folder, CIFAR10))
    return root


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No download succeeds."""

    def fail(*args: object, **options: object) -> Path:
        raise DatasetError("cannot download")

    monkeypatch.setattr(sources, "download_official", fail)


# ---- the split ------------------------------------------------------------------------------


def rows(images: ImageSet) -> set[bytes]:
    return {image.tobytes() for image in images.images}


@pytest.mark.parametrize("val_size", [0, 10, 100, 990])
def test_split_is_disjoint_and_stratified(data_dir: Path, val_size: int) -> None:
    made = module(data_dir, val_size=val_size, batch_size=10)
    assert np.bincount(made.val_set.labels, minlength=10).tolist() == [val_size // 10] * 10
    assert np.bincount(made.train_set.labels).tolist() == [100 - val_size // 10] * 10
    assert len(rows(made.train_set) | rows(made.val_set)) == 5 * IMAGES
    assert len(made.test_set.labels) == IMAGES
    assert made.label_names == [*SYNTHETIC_LABELS]


def test_images_keep_their_labels_and_names(data_dir: Path) -> None:
    made = module(data_dir)
    for part in (made.train_set, made.val_set):
        assert [name.split("_")[0] for name in part.names] == [
            SYNTHETIC_LABELS[label] for label in part.labels
        ]
    assert not rows(made.test_set) & (rows(made.train_set) | rows(made.val_set))


@pytest.mark.parametrize("shares", [(700, 200, 100), (5, 400, 3), (1, 1, 1)])
@pytest.mark.parametrize("val_share", [0.0, 0.1, 0.5, 0.99])
def test_classes_of_any_size_keep_their_share(shares: tuple[int, ...], val_share: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], shares))
    val_size = int(val_share * len(labels))
    train, val = stratified_split(labels, val_size, seed=0)
    assert sorted([*train, *val]) == [*range(len(labels))]
    expected = np.array(shares) * val_size / len(labels)
    assert np.abs(np.bincount(labels[val], minlength=3) - expected).max() < 1


def test_split_depends_on_split_seed_only(data_dir: Path) -> None:
    split = module(data_dir, seed=1).val_set.names
    assert module(data_dir, seed=2, batch_size=20, normalization="channel").val_set.names == split
    assert module(data_dir, seed=1, split_seed=1).val_set.names != split


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"val_size": 1000}, "val_size must be 0 to 999, got 1000"),
        ({"val_size": -1}, "val_size must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1"),
        ({"split_seed": -1}, "split_seed must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"batch_size": 901}, "batch_size must be at most 900, the training images"),
        ({"synthetic_images": 9}, "give at least 10"),
    ],
)
def test_numbers_out_of_range_are_refused(
    tmp_path: Path, data_dir: Path, options: dict[str, int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        module(tmp_path if "synthetic_images" in options else data_dir, **options)


# ---- normalisation --------------------------------------------------------------------------


def expected_statistics(
    images: NDArray[np.uint8], normalization: Normalization
) -> tuple[NDArray[np.float64], NDArray[np.float64] | float]:
    x = images.astype(np.float64)
    mean = x.mean((0, 2, 3), keepdims=True)[0] if normalization == "channel" else x.mean(0)
    std = np.sqrt(np.square(x - mean).mean((0, 2, 3), keepdims=True))[0]
    return mean, 1.0 if normalization == "mean_image" else std


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_images_are_normalised_with_the_training_split(
    data_dir: Path, normalization: Normalization, split: str
) -> None:
    made = module(data_dir, normalization=normalization, eval_batch_size=70)
    mean, std = expected_statistics(made.train_set.images, normalization)
    for batch in getattr(made, f"{split}_dataloader")():
        images, *labels = made.on_after_batch_transfer(batch, 0)
        assert images.dtype == torch.float32
        np.testing.assert_allclose(images, (batch[0].numpy() - mean) / std, rtol=1e-5, atol=1e-4)
        assert all(torch.equal(a, b) for a, b in zip(labels, batch[1:], strict=True))
        assert batch[0].dtype == torch.uint8


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_checkpoint_brings_statistics_and_names(
    data_dir: Path, normalization: Normalization
) -> None:
    made = module(data_dir, normalization=normalization)
    fresh = CIFAR10DataModule(normalization=normalization)
    fresh.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
    images = torch.from_numpy(made.test_set.images)
    assert torch.equal(fresh.normalize(images), made.normalize(images))
    assert fresh.label_names == made.label_names


def test_statistics_of_a_checkpoint_outlive_setup(data_dir: Path) -> None:
    made, other = (
        module(data_dir),
        CIFAR10DataModule(
            str(data_dir), source="synthetic", synthetic_images=IMAGES, val_size=500, batch_size=50
        ),
    )
    other.load_state_dict(made.state_dict())
    other.setup()
    images = torch.from_numpy(made.test_set.images)
    assert torch.equal(other.normalize(images), made.normalize(images))


def test_another_normalisation_than_the_checkpoints_is_refused(data_dir: Path) -> None:
    state = module(data_dir, normalization="channel").state_dict()
    with pytest.raises(ValueError, match=r"trained with normalization channel.*mean_image is"):
        CIFAR10DataModule().load_state_dict(state)


def changed(**new: Any) -> dict[str, Any]:
    """A checkpoint's state for ``channel``, with other values; none where the value is ``...``."""
    good = {"mean": torch.full((3, 1, 1), 99.0), "std": torch.ones(3, 1, 1)}
    state = {"normalization": "channel", "label_names": ["a", "b"], "statistics": good, **new}
    return {key: value for key, value in state.items() if value is not ...}


def statistics(**new: Any) -> dict[str, Any]:
    return changed(statistics={**changed()["statistics"], **new})


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ([1], "is a list"),
        (changed(normalization=...), "has no normalization"),
        (changed(normalization="other"), "has the normalization 'other'"),
        (changed(normalization=["channel"]), "has the normalization"),
        (changed(label_names=...), "has no label_names"),
        (changed(label_names="cat"), "has no list of label_names"),
        (changed(label_names=[]), "has no list of label_names"),
        (changed(label_names=["a", 3]), "has 3 among its label_names"),
        (changed(label_names=["a", "\x1b[2J"]), "among its label_names"),
        (changed(statistics=...), "has no statistics"),
        (changed(statistics=[1.0]), "has no statistics mean and std"),
        (changed(statistics={"mean": torch.ones(3, 1, 1)}), "has no statistics mean and std"),
        (statistics(more=1), "has no statistics mean and std"),
        (statistics(mean=99.0), "mean is no tensor"),
        (statistics(mean=torch.ones(3, 32, 32)), r"mean is no tensor of shape \(3, 1, 1\)"),
        (statistics(mean=torch.ones(3, 1, 1, dtype=torch.int64)), "mean is no tensor"),
        (statistics(mean=torch.ones(3, 1, 1, device="meta")), "mean is no tensor"),
        (statistics(mean=torch.ones(3, 1, 1).to_sparse()), "mean is no tensor"),
        (statistics(mean=torch.full((3, 1, 1), torch.nan)), "mean is not finite"),
        (statistics(std=torch.zeros(3, 1, 1)), "std is not finite, or not positive"),
        (statistics(std=torch.full((3, 1, 1), torch.inf)), "std is not finite"),
    ],
)
def test_a_malformed_state_of_a_checkpoint_is_one_line(state: Any, complaint: str) -> None:
    made = CIFAR10DataModule(normalization="channel")
    made.load_state_dict(changed())
    with pytest.raises(
        ValueError, match=f"^the checkpoint's state of a CIFAR10DataModule .*{complaint}"
    ) as failure:
        made.load_state_dict(state)
    assert len(str(failure.value).splitlines()) == 1
    assert made.label_names == ["a", "b"]  # nothing is taken of it


# ---- where the data comes from --------------------------------------------------------------


@pytest.mark.usefixtures("offline")
def test_auto_falls_back_to_synthetic_images_aloud(
    data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = CIFAR10DataModule(str(data_dir), source="auto", synthetic_images=IMAGES, val_size=100)
    made.prepare_data()
    assert re.search("cannot download.*USING THE SYNTHETIC STAND-IN", caplog.text)
    assert made.resolved_source == "synthetic"
    made.setup()
    assert len(made.test_set.labels) == IMAGES


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_cifar10_on_disk_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = module(real(tmp_path, monkeypatch), source=source, val_size=10, batch_size=10)
    assert made.resolved_source == "cifar10"
    assert len(made.train_set.labels) == 40
    assert "SYNTHETIC" not in capsys.readouterr().err


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("download", [True, False])
def test_missing_cifar10_is_an_error_with_the_remedy(tmp_path: Path, download: bool) -> None:
    made = CIFAR10DataModule(str(tmp_path), download=download)
    with pytest.raises(
        DatasetError, match=r"no such folder.*CIFAR10_DIR.*--data.source synthetic"
    ) as e:
        made.setup()
    assert ("cannot download" in str(e.value)) is download
    assert not [*tmp_path.iterdir()]  # no stand-in behind the user's back


@pytest.mark.usefixtures("offline")
def test_corrupted_cifar10_is_never_replaced_by_the_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (real(tmp_path, monkeypatch) / CIFAR10.folder / "data_batch_1").write_bytes(b"")
    with pytest.raises(DatasetError, match="data_batch_1 is cut short"):
        CIFAR10DataModule(str(tmp_path), source="auto").setup()


def test_data_dir_beats_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert CIFAR10DataModule().data_dir == Path("data")
    monkeypatch.setenv("CIFAR10_DIR", str(real(tmp_path / "env", monkeypatch)))
    made = CIFAR10DataModule(val_size=0, batch_size=10)
    made.setup()
    assert made.resolved_source == "cifar10"
    assert CIFAR10DataModule("mine").data_dir == Path("mine")


def test_the_environment_may_name_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_DIR", "~/cifar")
    assert CIFAR10DataModule().data_dir == tmp_path / "cifar"
    assert CIFAR10DataModule("~/mine").data_dir == tmp_path / "mine"
    monkeypatch.setenv("CIFAR10_DIR", "")
    assert CIFAR10DataModule().data_dir == Path("data")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("download", [True, False])
def test_a_wrong_archive_is_named_with_all_that_was_tried(tmp_path: Path, download: bool) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half")
    with pytest.raises(DatasetError, match=r"not found in .*tar\.gz is cut short, or another file"):
        CIFAR10DataModule(str(tmp_path), download=download).setup()


def test_a_data_dir_that_is_the_archive_is_told_where_it_belongs(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.touch()
    with pytest.raises(DatasetError, match="is a file, name the folder that it lies in"):
        CIFAR10DataModule(str(archive), download=False).setup()


def test_splits_before_setup_are_an_error() -> None:
    with pytest.raises(DatasetError, match="setup"):
        CIFAR10DataModule().train_dataloader()


# ---- with a Trainer -------------------------------------------------------------------------


class Witness(LightningModule):
    """Learns next to nothing and keeps the training batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3072, 10)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.seen.append(batch)
        return torch.nn.functional.cross_entropy(self.linear(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val/count", float(len(batch[1])), reduce_fx="sum")

    def predict_step(self, batch: tuple[Tensor], batch_idx: int) -> Tensor:
        logits: Tensor = self.linear(batch[0].flatten(1))
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


def trainer(**options: Any) -> Trainer:
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


def test_trainer_announces_the_epochs(data_dir: Path) -> None:
    model, made = Witness(), module(data_dir, batch_size=450, seed=3)
    fit = trainer(max_steps=3)  # one and a half epochs
    fit.fit(model, made)
    assert fit.callback_metrics["val/count"] == 100
    source = made.train_dataloader()

    def expected() -> Iterator[tuple[Tensor, ...]]:
        for epoch in (0, 1):
            source.set_epoch(epoch)
            yield from source

    for (images, labels), (raw, true) in zip(model.seen, expected(), strict=False):
        assert torch.equal(images, made.normalize(raw))
        assert torch.equal(labels, true)
    assert len(model.seen) == 3


def test_trainer_goes_without_validation(data_dir: Path) -> None:
    fit = trainer(max_steps=1)
    fit.fit(Witness(), module(data_dir, val_size=0))
    assert (fit.global_step, fit.callback_metrics) == (1, {})


def test_checkpoint_predicts_pictures_without_the_data_set(data_dir: Path, tmp_path: Path) -> None:
    model, made = Witness(), module(data_dir)
    fit = trainer(max_steps=1)
    fit.fit(model, made)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "pictures").mkdir()
    pixels = made.test_set.images[0]
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "pictures" / "a.png")
    bare = CIFAR10DataModule(str(tmp_path / "none"), predict_dir=str(tmp_path / "pictures"))
    (logits,) = trainer().predict(Witness(), bare, ckpt_path=tmp_path / "a.ckpt") or []
    expected = model.linear(made.normalize(torch.from_numpy(pixels[None])).flatten(1))
    torch.testing.assert_close(logits, expected.detach())


def test_names_of_classes_that_nothing_told_are_an_error() -> None:
    with pytest.raises(DatasetError, match="the checkpoint holds no state of a CIFAR10DataModule"):
        CIFAR10DataModule().label_names  # noqa: B018


def test_pictures_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="ckpt_path"):
        trainer().predict(Witness(), CIFAR10DataModule(predict_dir=str(tmp_path)))
