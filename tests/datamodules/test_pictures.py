"""Pictures to predict: read as they are meant, and only what is a picture."""

import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, ExifTags, Image

from datamodules import DatasetError
from datamodules.pictures import read_images
from tests.conftest import Cli


def test_pictures_of_any_size_and_mode_are_read(tmp_path: Path) -> None:
    red = (200, 0, 0)
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (64, 48), red).save(tmp_path / "b.png")
    Image.new("RGBA", (7, 32), (*red, 128)).save(tmp_path / "c.PNG")
    Image.new("L", (1, 1), 90).save(tmp_path / "deeper" / "d.png")
    Image.new("I;16", (40, 40), 90 * 256 + 7).save(tmp_path / "e.png")
    Image.new("P", (32, 32), 0).save(tmp_path / "f.gif")
    (tmp_path / "notes.txt").write_text("not a picture")
    read = read_images(tmp_path)
    assert read.names == ["b.png", "c.PNG", "deeper/d.png", "e.png", "f.gif"]
    expected = np.array([red, red, [90] * 3, [90] * 3, [0] * 3], dtype=np.uint8)
    np.testing.assert_array_equal(read.images, np.broadcast_to(expected.T, (32, 32, 3, 5)).T)
    assert (read.labels.tolist(), read.images.shape) == ([-1] * 5, (5, 3, 32, 32))


def test_picture_of_the_right_size_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_images(tmp_path).images[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "qoi"])
@pytest.mark.parametrize("keep", [0, 20, 0.5])
def test_broken_picture_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    with pytest.raises(DatasetError, match=f"cannot read the image {path}"):
        read_images(tmp_path)


@pytest.mark.parametrize(("name", "found"), [("", "holds no image"), ("none", "is no file and no")])
def test_nothing_to_predict_is_an_error(tmp_path: Path, name: str, found: str) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DatasetError, match=f"{found}.*--data.predict_dir"):
        read_images(tmp_path / name)


# By its number, what EXIF's orientation says of the pixels as they are stored.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_pictures_are_turned_as_their_exif_says(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    corners = np.kron([[0, 90], [170, 250]], np.ones((16, 16)))
    upright = np.stack([corners, corners.T, 255 - corners], axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True}
    stored.save(tmp_path / f"a.{suffix}", exif=exif, **options)
    read = read_images(tmp_path).images[0].transpose(1, 2, 0).astype(int)
    assert np.abs(read - upright).max() <= (6 if suffix == "jpg" else 0)


def test_deep_grey_and_palettes_are_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    grey = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) << 6
    Image.fromarray(grey).save(tmp_path / "a.png", exif=exif)
    palette = Image.fromarray((grey >> 8).astype(np.uint8)).convert("P")
    palette.save(tmp_path / "b.png", exif=exif)
    deep, coloured = read_images(tmp_path).images
    np.testing.assert_array_equal(deep[0], np.rot90(grey >> 8, -1))
    np.testing.assert_array_equal(deep, coloured)


def test_a_picture_with_broken_exif_is_read_as_it_is(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff")
    assert read_images(tmp_path).images[0, :, 0, 0].tolist() == [1, 2, 3]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("name", ["cat.png", "cat.eps", "cat.jpg"])
def test_postscript_starts_no_interpreter(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_bytes(POSTSCRIPT)
    with Image.open(tmp_path / name) as seen:
        assert seen.format == "EPS"  # Pillow would take it
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("started"))
    with pytest.raises(DatasetError, match=f"{name}: it is damaged, or in none of the formats PNG"):
        read_images(tmp_path)


@pytest.mark.parametrize(
    "save", [".pcx", ".tga", ".ico", ".icns", ".im", ".sgi", ".dds", ".pdf", ".jp2"]
)
def test_other_formats_are_refused_under_any_name(tmp_path: Path, save: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / f"a{save}")
    (tmp_path / f"a{save}").rename(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a\.png: it is damaged, or in none of the formats"):
        read_images(tmp_path)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    socket.socket(socket.AF_UNIX).bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        fifo,
        listening,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to("gone"),
        lambda path: path.symlink_to(path.name),
    ],
    ids=["fifo", "socket", "device", "broken link", "endless link"],
)
def test_what_is_no_regular_file_is_named_and_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    make(Path("a.png"))
    with pytest.raises(DatasetError, match=r"a.png: it is no regular file"):
        read_images(Path())


def test_links_to_pictures_are_followed_and_folders_named_like_pictures_are_folders(
    tmp_path: Path,
) -> None:
    (tmp_path / "all").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "all/a.png")
    (tmp_path / "some/b.png").mkdir(parents=True)
    (tmp_path / "some/b.png/c.png").symlink_to(tmp_path / "all/a.png")
    assert read_images(tmp_path / "some").names == ["b.png/c.png"]


def chunk(kind: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


@pytest.mark.parametrize("side", [9_500, 14_000, 60_000])
def test_a_decompression_bomb_is_one_line(tmp_path: Path, side: int) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data)
    with pytest.raises(DatasetError, match=r"a.png: Image size .* exceeds limit") as failure:
        read_images(tmp_path)
    assert len(str(failure.value).splitlines()) == 1


def test_a_checkpoint_without_statistics_is_an_error_before_anything_is_written(
    fit: Cli, error_of: Callable[[list[str]], str], runs: Path, tmp_path: Path
) -> None:
    kept = fit("--model=MLP", "--model.hidden_units=[2]").path
    checkpoint = torch.load(kept / "best.ckpt", weights_only=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    flags = [f"--data.predict_dir={tmp_path}", f"--ckpt_path={tmp_path / 'theirs.ckpt'}"]
    for state in ({}, None, {"normalization": "mean_image"}):
        torch.save(checkpoint | {"CIFAR10DataModule": state}, tmp_path / "theirs.ckpt")
        message = error_of(["predict", f"--runs_dir={runs}", "--name=run", *flags])
        assert "CIFAR10DataModule" in message
    assert not [*kept.glob("predictions*")]


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I", [0, 256 * 90 + 7, 65535], [0, 90, 255]),  # 16 bits in 32
        ("I", [0, 90, 255], [0, 90, 255]),
        ("F", [0.0, 90 / 255, 1.0], [0, 90, 255]),
        ("F", [0.0, 90.0, 255.0], [0, 90, 255]),
        ("F", [float("nan"), 90.0, -5.0], [0, 90, 0]),
    ],
)
def test_grey_of_32_bits_is_not_clipped(
    mode: str, values: list[float], expected: list[int], tmp_path: Path
) -> None:
    dtype = np.int32 if mode == "I" else np.float32
    columns = np.repeat(np.array(values, dtype), [10, 12, 10])[None].repeat(32, 0)
    Image.fromarray(columns, mode=None).save(tmp_path / "a.tiff")
    assert Image.open(tmp_path / "a.tiff").mode == mode
    found = read_images(tmp_path).images[0, :, 16, [4, 16, 28]]
    assert found.tolist() == [[value] * 3 for value in expected]
