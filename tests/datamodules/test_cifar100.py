"""CIFAR-100: the reader, the sources and the commands of CIFAR-10 take it as they take CIFAR-10."""

import os
import pickle
import tarfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli import main
from datamodules import CIFAR100DataModule, DatasetError
from datamodules.files import CIFAR10, CIFAR100, read_test
from datamodules.sources import (
    download_official,
    find_official,
    make_synthetic,
    official_folder,
    unpack_official,
)
from datamodules.synthetic import label_names, write_synthetic
from experiments import load
from experiments.records.record import RunRecord
from tests.conftest import SHORT, passing_for, with_archive
from tests.datamodules.test_files import Attack, Server, sends

CLASSES = label_names(CIFAR100)


def trust(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the files of a folder for those of the official CIFAR-100."""
    monkeypatch.setattr(CIFAR100DataModule, "official", passing_for(folder, CIFAR100))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small set that passes for the official CIFAR-100."""
    path = tmp_path / "data" / CIFAR100.folder
    write_synthetic(path, images_per_batch=100, official=CIFAR100)
    trust(path, monkeypatch)
    return path


def module(folder: Path, **options: Any) -> CIFAR100DataModule:
    small: dict[str, Any] = {"val_size": 100, "batch_size": 50, "download": False}
    return CIFAR100DataModule(str(folder.parent), **{**small, **options})


def content_of(path: Path) -> dict[bytes, Any]:
    content: dict[bytes, Any] = pickle.loads(path.read_bytes(), encoding="bytes")
    return content


def test_the_fine_labels_and_their_names_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    test = {**content_of(folder / "test"), b"coarse_labels": [0] * 100}
    (folder / "test").write_bytes(pickle.dumps(test, protocol=2))
    trust(folder, monkeypatch)
    made = module(folder)
    made.setup()
    assert (made.resolved_source, made.label_names) == ("cifar100", CLASSES)
    assert made.test_set.labels.tolist() == test[b"fine_labels"]
    np.testing.assert_array_equal(made.test_set.images.reshape(-1, 3072), test[b"data"])
    assert np.bincount(made.train_set.labels).tolist() == [4] * 100  # of five, one to validate on
    assert np.bincount(made.val_set.labels).tolist() == [1] * 100


def test_the_official_files_are_described_alike() -> None:
    for official in (CIFAR10, CIFAR100):
        named = {*official.train_files, official.test_file, official.meta_file}
        assert official.sha256.keys() == official.sizes.keys() == named
        assert {len(digest) for digest in official.sha256.values()} == {64}
        assert official.url == f"https://www.cs.toronto.edu/~kriz/{official.archive}"
        assert max(official.sizes.values()) < official.archive_bytes


def test_every_other_set_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="is damaged: train is cut short"):
        read_test(folder, CIFAR100)  # by the real checksums


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    content = bytearray((folder / name).read_bytes())
    content[99] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DatasetError, match=f"in {folder} is damaged: {name} is corrupted"):
        module(folder).setup()


def test_no_code_in_a_pickle_is_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder.parent / "made"
    (folder / "test").write_bytes(pickle.dumps({b"data": Attack(os.mkdir, str(made))}))
    with pytest.raises(DatasetError, match="test is cut short"):
        module(folder).setup()
    trust(folder, monkeypatch)
    with pytest.raises(DatasetError, match=r"test is no batch of CIFAR-100: refused to unpickle"):
        module(folder).setup()
    assert not made.exists()


def test_what_is_missing_is_named_with_its_own_remedy(tmp_path: Path) -> None:
    (tmp_path / CIFAR100.archive).write_bytes(b"half")
    with pytest.raises(DatasetError) as caught:
        module(tmp_path / "x").setup()
    for part in (
        f"CIFAR-100 not found in {tmp_path / 'cifar-100-python'}: no such folder",
        f"{tmp_path / 'cifar-100-python.tar.gz'} is cut short, or another file (4 of 169,001,437",
        "Copy the official cifar-100-python folder there",
        "--data.data_dir or CIFAR100_DIR",
        "--data.source synthetic",
    ):
        assert part in str(caught.value)
    assert "CIFAR-10 " not in str(caught.value)
    assert "cifar-10-" not in str(caught.value)


def test_the_environment_names_its_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_DIR", "elsewhere")
    assert CIFAR100DataModule().data_dir == Path("data")
    monkeypatch.setenv("CIFAR100_DIR", str(folder))  # the inner folder
    made = CIFAR100DataModule(val_size=0, batch_size=10)
    made.setup()
    assert len(made.train_set.labels) == 500


def test_a_file_named_test_is_no_sign_of_the_data(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "test").write_text("somebody's own")
    assert official_folder(tmp_path, CIFAR100) == tmp_path / CIFAR100.folder
    renamed = folder.rename(tmp_path / "renamed")
    assert find_official(renamed, CIFAR100) == renamed


def test_both_data_sets_lie_in_one_folder(folder: Path) -> None:
    write_synthetic(folder.parent / CIFAR10.folder, images_per_batch=10)
    assert find_official(folder.parent, CIFAR100) == folder
    assert find_official(folder.parent, CIFAR10) == folder.parent / CIFAR10.folder


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    """The archive of the small set, elsewhere; the set itself is gone from ``data_dir``."""
    path = tmp_path / CIFAR100.archive
    with tarfile.open(path, mode="w:gz") as tar:
        tar.add(folder, arcname=CIFAR100.folder)
    folder.rename(tmp_path / "gone")
    return path


def test_the_archive_is_unpacked(folder: Path, archive: Path) -> None:
    official = with_archive(archive.read_bytes(), CIFAR100DataModule.official)
    archive.rename(folder.parent / CIFAR100.archive)
    assert unpack_official(folder.parent, official) == folder
    assert len(read_test(folder, official).labels) == 100


def test_the_archive_is_downloaded_beside_another_download(
    folder: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    others = folder.parent / f".download-{CIFAR10.folder}-of-another-process"
    others.mkdir()
    with Server() as server:
        server.answers = {"/good": sends(archive.read_bytes())}
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        official = with_archive(archive.read_bytes(), CIFAR100DataModule.official)
        official = replace(official, url=server.url("/good"))
        assert download_official(folder.parent, official) == folder
        server.shutdown()
    assert len(read_test(folder, official).labels) == 100
    assert others.is_dir()


def test_the_stand_in_is_in_the_same_format(tmp_path: Path) -> None:
    data = CIFAR100DataModule(
        str(tmp_path), "synthetic", synthetic_images=100, val_size=100, batch_size=10
    )
    data.setup()
    assert data.resolved_source == "synthetic100"
    assert data.label_names == CLASSES
    assert {path.name for path in make_synthetic(tmp_path, 100, CIFAR100).iterdir()} == {
        *CIFAR100.sha256,
        "sha256.json",
    }
    with pytest.raises(ValueError, match="give at least 100, one per class"):
        make_synthetic(tmp_path, 99, CIFAR100)


FIT = ["fit", "--model=MLP", "--model.hidden_units=[4]", "--data=CIFAR100DataModule", *SHORT]
SMALL = ["--data.batch_size=50", "--data.val_size=100", "--trainer.logger=false"]


def test_every_command_works_on_it(
    folder: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [f"--data.data_dir={folder.parent}", *SMALL, f"--runs_dir={runs}"]
    main([*FIT, *data, "--name=whole", "--test_after_fit=true"])
    assert "CIFAR-100: 200 of 400 train / 100 val / 100 test images" in capsys.readouterr().out
    main([*FIT, *data, "--name=run", "--trainer.max_steps=2"])
    run = ["--name=run", f"--runs_dir={runs}"]
    main(["fit", "--resume", "--trainer.max_steps=4", *run])
    for words in (["test"], ["predict"], ["export", "--format=torch_export"]):
        main([*words, *run])
    whole, resumed = (RunRecord.open(runs / name) for name in ("whole", "run"))
    assert resumed.fields["data"] == "cifar100"
    assert resumed.fields["images"] == {"train": 400, "val": 100, "test": 100}
    for key in ("train/weights_sha256", "val/loss", "test/loss", "test/per_class"):
        assert resumed.summary[key] == whole.summary[key]
    assert whole.summary["test/per_class"].keys() == {*CLASSES}
    lines = (runs / "run" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 101
    assert lines[0] == f"file,label,prediction,confidence,{','.join(CLASSES)}"
    model = load(runs / "run")
    assert model.classes == CLASSES
    found = model.predict(list(np.zeros((2, 32, 32, 3), np.uint8)))
    assert found.probabilities.shape == (2, 100)


def test_a_checkpoint_alone_is_exported_with_its_own_test_set(
    folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*FIT, *SMALL, f"--data.data_dir={folder.parent}", f"--runs_dir={runs}", "--name=run"])
    alone = (runs / "run" / "best.ckpt").rename(tmp_path / "alone.ckpt")
    words = ["export", f"--ckpt_path={alone}", f"--data_dir={folder.parent}"]
    main([*words, "--format=torch_export"])
    assert "on 100 images" in capsys.readouterr().out


def test_a_resume_without_a_name_takes_no_run_on_other_data(
    folder: Path, synthetic: list[str], runs: Path
) -> None:
    fit = [*FIT[:3], *SHORT, f"--runs_dir={runs}", "--trainer.logger=false"]
    main([*fit, *synthetic, "--trainer.max_steps=2"])
    (other,) = runs.iterdir()
    record = RunRecord.open(other)
    record.fields["status"] = "interrupted"
    record.save()
    main([*FIT, *SMALL, f"--data.data_dir={folder.parent}", f"--runs_dir={runs}", "--resume"])
    assert RunRecord.open(other).fields["status"] == "interrupted"
    (ours,) = set(runs.iterdir()) - {other}
    assert "-cifar100-s42-" in ours.name


def test_a_wrong_source_is_told_the_right_ones(error_of: Callable[[list[str]], str]) -> None:
    message = error_of([*FIT, "--data.source=cifar10"])
    assert message == ("data.source: expected one of cifar100, synthetic, auto, got cifar10")
