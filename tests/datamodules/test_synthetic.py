"""The synthetic set: CIFAR-10's format, reproducible, learnable but not by averages alone."""

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.files import CIFAR100
from datamodules.synthetic import SYNTHETIC_LABELS, VERSION, write_synthetic

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
# VERSION -> SHA-256 of the test images below. Found equal with NumPy 2.0.2, 2.2.6 and 2.4.6 on
# x86-64, with the SIMD kernels beyond the baseline on and off.
DIGESTS = {1: "05f07a2fa69d11446a7dde6f906dffa9f5fe95a9ec4389977a9ff56180fbc2bf"}


def load(directory: Path, name: str) -> dict[bytes, Any]:
    """Read one file as CIFAR-10's own page says to."""
    with (directory / name).open("rb") as file:
        content: dict[bytes, Any] = pickle.load(file, encoding="bytes")
    return content


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the set once, 200 images per batch."""
    directory = tmp_path_factory.mktemp("synthetic") / "made" / "if missing"
    write_synthetic(directory, images_per_batch=200)
    return directory


@pytest.mark.parametrize("name", BATCHES)
def test_batch_has_the_original_structure(written: Path, name: str) -> None:
    batch = load(written, name)
    title = "testing batch 1 of 1" if name == "test_batch" else f"training batch {name[-1]} of 5"
    assert list(batch) == [b"batch_label", b"labels", b"data", b"filenames"]
    assert batch[b"batch_label"] == title.encode()
    assert batch[b"data"].shape == (200, 3072)
    assert batch[b"data"].dtype == np.uint8
    assert {type(label) for label in batch[b"labels"]} == {int}
    assert [type(filename) for filename in batch[b"filenames"]] == [bytes] * 200
    assert (written / name).read_bytes()[:2] == b"\x80\x02"  # pickle protocol 2


def test_meta_has_the_original_structure(written: Path) -> None:
    assert load(written, "batches.meta") == {
        b"num_cases_per_batch": 200,
        b"label_names": [label.encode() for label in SYNTHETIC_LABELS],
        b"num_vis": 3072,
    }
    assert len(set(SYNTHETIC_LABELS)) == 10
    assert sorted(path.name for path in written.iterdir()) == sorted([*BATCHES, "batches.meta"])


@pytest.mark.parametrize("count", [10, 57])
def test_labels_are_balanced_up_to_rounding(tmp_path: Path, count: int) -> None:
    write_synthetic(tmp_path, images_per_batch=count)
    for name in BATCHES:
        counts = np.bincount(load(tmp_path, name)[b"labels"], minlength=10)
        assert counts.sum() == count
        assert np.ptp(counts) <= 1


@pytest.mark.parametrize(("seed", "same"), [(3, True), (4, False)])
def test_the_seed_decides_every_byte(tmp_path: Path, seed: int, same: bool) -> None:
    write_synthetic(tmp_path / "a", images_per_batch=20, seed=3)
    write_synthetic(tmp_path / "b", images_per_batch=20, seed=seed)
    for name in BATCHES:
        equal = (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
        assert equal is same


def test_changed_pixels_need_a_new_version(written: Path) -> None:
    digest = hashlib.sha256(load(written, "test_batch")[b"data"].tobytes()).hexdigest()
    assert DIGESTS.get(VERSION) == digest, "raise VERSION and add its digest"


def test_no_image_appears_twice(written: Path) -> None:
    rows = [row.tobytes() for name in BATCHES for row in load(written, name)[b"data"]]
    assert len(set(rows)) == 6 * 200


@pytest.mark.parametrize("count", [9, 0, -1])
def test_too_few_images_are_refused_in_one_line(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=rf"^images_per_batch is {count}: .*$"):
        write_synthetic(tmp_path / "new", images_per_batch=count)
    assert not (tmp_path / "new").exists()


def test_class_means_beat_chance_but_do_not_solve_it(written: Path) -> None:
    train = [load(written, name) for name in BATCHES[:5]]
    data = np.concatenate([batch[b"data"] for batch in train]).astype(np.float32)
    labels = np.concatenate([batch[b"labels"] for batch in train])
    means = np.stack([data[labels == k].mean(axis=0) for k in range(10)])
    test = load(written, "test_batch")
    distance = ((test[b"data"][:, None].astype(np.float32) - means) ** 2).sum(axis=2)
    accuracy = np.mean(distance.argmin(axis=1) == test[b"labels"])
    assert 0.15 < accuracy < 0.6


# ---- the stand-in for CIFAR-100 ------------------------------------------------------------------

DIGESTS_OF_100 = {1: "3e2eb7f35d3f8a1db6f1612ecf73993544ebb5a057afe80dfcd9567b82273651"}


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of a hundred classes, 200 images to test on."""
    directory = tmp_path_factory.mktemp("hundred")
    write_synthetic(directory, images_per_batch=200, official=CIFAR100)
    return directory


def test_a_hundred_classes_have_the_structure_of_cifar100(hundred: Path) -> None:
    assert {path.name for path in hundred.iterdir()} == {"train", "test", "meta"}
    names = load(hundred, "meta")[b"fine_label_names"]
    assert len({*names}) == 100
    assert (names[0], names[99]) == (b"red_disc", b"rose_checkers")
    for name, kind, count in (("train", "training", 1000), ("test", "testing", 200)):
        batch = load(hundred, name)
        assert batch[b"batch_label"] == f"{kind} batch 1 of 1".encode()
        assert batch[b"data"].shape == (count, 3072)
        assert np.bincount(batch[b"fine_labels"]).tolist() == [count // 100] * 100
        labels = zip(batch[b"filenames"], batch[b"fine_labels"], strict=True)
        assert all(file.startswith(names[label] + b"_s_") for file, label in labels)


def test_changed_pixels_of_a_hundred_classes_need_a_new_version(hundred: Path) -> None:
    digest = hashlib.sha256(load(hundred, "test")[b"data"].tobytes()).hexdigest()
    assert DIGESTS_OF_100.get(VERSION) == digest, "raise VERSION and add its digest"


def test_the_tens_are_shapes_and_the_ones_are_hues(hundred: Path) -> None:
    train = load(hundred, "train")
    labels = np.array(train[b"fine_labels"])
    colour = train[b"data"].reshape(-1, 3, 1024).mean(2)
    colour -= colour.mean(1, keepdims=True)
    found = [colour[labels % 10 == hue].mean(0).argmax() for hue in (0, 3, 7)]
    assert found == [0, 1, 2]  # red, green, blue
