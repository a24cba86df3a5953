"""Reads pictures of any size for predictions: only listed formats, regular files, bounded sizes."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from datamodules.files import DatasetError, ImageSet

_SIZE = 32
# Formats for `predict`. Pillow has more, such as PostScript, for which it starts Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM", "QOI")
# The operation for each EXIF orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_images(folder: Path, remedy: str = "check --data.predict_dir") -> ImageSet:
    """Reads an image file, or all below a folder, as 32x32 RGB, rotated by the EXIF orientation.

    Args:
        folder: the file or folder.
        remedy: what to do if it has no images, for the message.

    Returns:
        The images, sorted by name, with label -1.

    Raises:
        DatasetError: if the folder is missing or holds no images; or if an image can't be read, has
            a format that is not in `FORMATS`, or has too many pixels.
    """
    if folder.is_file():
        return ImageSet(_read_image(folder)[None], np.full(1, -1), [folder.name])
    known = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
    paths = [path for path in paths if not path.is_dir()]
    if not paths:
        found = "holds no image files" if folder.is_dir() else "is no file and no folder"
        raise DatasetError(f"{folder} {found}: {remedy}")
    images = np.stack([_read_image(path) for path in paths])
    names = [str(path.relative_to(folder)) for path in paths]
    return ImageSet(images, np.full(len(paths), -1, dtype=np.int64), names)


def _read_image(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        if not path.is_file():  # opening a pipe would wait; links to files are followed
            raise ValueError("it is no regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as file:
                return pixels_of(file)
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise DatasetError(
            f"cannot read the image {path}: it is damaged, or in none of the formats {known}"
        ) from error
    except Exception as error:  # broken files raise different errors by format
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DatasetError(f"cannot read the image {path}: {reason}") from error


def pixels_of(file: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pixels of an image, uint8 ``(3, 32, 32)``, rotated by its EXIF orientation."""
    turn = _TURNS.get(_orientation(file))
    image = (_eight_bits(file) if file.mode[0] in "IF" else file).convert("RGB")
    if turn is not None:
        image = image.transpose(turn)
    small = image.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.uint8).transpose(2, 0, 1)


def _eight_bits(file: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or floats as 8 bits: `convert` would clip it at 255, which is white.

    Values above 255 are those of 16 bits; floats from 0 to 1 are scaled.
    """
    values = np.nan_to_num(np.asarray(file).astype(np.float64))
    if file.mode == "F" and values.max() <= 1:
        values = values * 255
    elif file.mode.startswith("I;16") or values.max() > 255:
        values = values // 256
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _orientation(file: Image.Image) -> Any:
    file.load()  # this rotates a TIFF and updates its orientation
    try:
        return file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the EXIF is broken, as from some cameras, but not the image
        return None
