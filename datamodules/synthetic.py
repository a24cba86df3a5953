"""Embedded stand-ins for CIFAR-10 and CIFAR-100: rendered shapes in their own file formats.

The ten classes of CIFAR-10's stand-in are ten shapes. The hundred of CIFAR-100's are these shapes,
each in ten hues. Every image shows one object (its class is the label) on a shaded background, with
noise. Sometimes a smaller object of another shape hides a part of it. Position, size, tilt, colours
and polarity (light on dark or dark on light) vary, so single pixels have little information. A
class only prefers a colour and a position, which a linear model can learn. Linear models, MLPs and
CNNs reach clearly different accuracies, as on CIFAR-10.

All arithmetic is float32 and uses only correctly rounded operations (+ - * / sqrt, comparisons),
never sin or exp. So the images depend on the seed and NumPy's PCG64 stream, not on the processor.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.files import CIFAR10, OfficialSet

# Part of the name of cached images: increase it when a pixel changes.
# 1: the first set.
VERSION = 1

SIDE = 32  # pixels
CHUNK = 500  # images rendered at once: limits the memory, and the planes stay in the cache

Floats = NDArray[np.floating[Any]]  # float32, but NumPy's stubs lose the type with a Python float
Labels = NDArray[np.int64]


def _both(a: Floats, b: Floats) -> Floats:
    """Return the intersection of two shapes."""
    distance: Floats = np.maximum(a, b)
    return distance


# A shape maps local coordinates (u to the right, v down, in units of the object's size) to a signed
# distance in the same units, below 0 inside.
def _disc(u: Floats, v: Floats) -> Floats:
    """Return a filled circle."""
    return np.sqrt(u * u + v * v) - 0.9


def _ring(u: Floats, v: Floats) -> Floats:
    """Return a circle with a hole."""
    return np.abs(np.sqrt(u * u + v * v) - 0.75) - 0.25


def _crescent(u: Floats, v: Floats) -> Floats:
    """Return a disc less a disc moved to the right."""
    return _both(_disc(u, v), -_disc(u - 0.6, v))


def _square(u: Floats, v: Floats) -> Floats:
    """Return a filled square."""
    return _both(np.abs(u) - 0.8, np.abs(v) - 0.8)


def _frame(u: Floats, v: Floats) -> Floats:
    """Return a square with a hole."""
    return _both(_square(u, v) - 0.12, -0.32 - _square(u, v))


def _triangle(u: Floats, v: Floats) -> Floats:
    """Return a triangle that stands on its base."""
    return _both(0.85 * np.abs(u) - 0.5 * v - 0.45, v - 0.75)


def _cross(u: Floats, v: Floats) -> Floats:
    """Return an upright plus sign."""
    a, b = np.abs(u), np.abs(v)
    return _both(np.minimum(a, b) - 0.3, _square(u, v) - 0.2)


def _rows(u: Floats, v: Floats) -> Floats:
    """Return three horizontal bars: a square less two gaps."""
    return _both(_square(u, v) - 0.05, 0.17 - np.abs(np.abs(v) - 0.35))


def _columns(u: Floats, v: Floats) -> Floats:
    """Return three vertical bars."""
    return _rows(v, u)


def _checkers(u: Floats, v: Floats) -> Floats:
    """Return the two dark fields of a two by two chessboard."""
    inside = np.sign(u * v) * np.minimum(np.abs(u), np.abs(v))
    return _both(_square(u, v) - 0.1, -inside)


SHAPES: tuple[Callable[[Floats, Floats], Floats], ...] = (
    _disc,
    _ring,
    _crescent,
    _square,
    _frame,
    _triangle,
    _cross,
    _rows,
    _columns,
    _checkers,
)
SYNTHETIC_LABELS: tuple[str, ...] = tuple(shape.__name__[1:] for shape in SHAPES)
HUES = ("red", "orange", "lime", "green", "mint", "cyan", "azure", "blue", "violet", "rose")


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    """Draw float32 from [low, high); ``rng.uniform`` may fuse multiply and add on some machines."""
    unit: Floats = rng.random(shape, dtype=np.float32)
    return low + (high - low) * unit


def _coverage(rng: np.random.Generator, kinds: Labels, centre: Floats, size: Floats) -> Floats:
    """Return the share of each pixel (n, 32, 32) that objects of class ``kinds`` (n,) cover.

    ``centre`` (n, 2) is x, y from the image's middle and ``size`` (n, 1, 1) the scale, in pixels.
    """
    t = _uniform(rng, -0.3, 0.3, len(kinds), 1, 1)  # tangent of half the tilt: up to 33 degrees
    cos, sin = (1 - t * t) / (1 + t * t) / size, 2 * t / (1 + t * t) / size
    axis = np.arange(SIDE, dtype=np.float32) - (SIDE - 1) / 2
    x = axis - centre[:, 0, None, None]
    y = axis[:, None] - centre[:, 1, None, None]
    distance = np.empty((len(kinds), SIDE, SIDE), np.float32)
    for kind, shape in enumerate(SHAPES):
        i = np.flatnonzero(kinds == kind)
        u = x[i] * cos[i] + y[i] * sin[i]
        v = y[i] * cos[i] - x[i] * sin[i]
        distance[i] = shape(u, v) * size[i]
    share: Floats = np.clip(0.5 - distance, 0, 1)  # the edge runs through a pixel: antialiasing
    return share


def _tint(rng: np.random.Generator, hues: Labels, spread: float) -> Floats:
    """Return colours (n, 3) of random strength within ``spread`` of `HUES` (n,).

    The spread is in turns. Levels are grey levels to add, -45 to 45.
    """
    hue = hues.astype(np.float32) / 10 + _uniform(rng, -spread, spread, len(hues))
    wheel = (hue[:, None] * 6 + np.array([0, 4, 2], np.float32)) % 6  # red, green, blue: HSV
    pure: Floats = np.clip(np.abs(wheel - 3) - 1, 0, 1)
    return (pure - 0.5) * _uniform(rng, 20, 90, len(hues), 1)


def _render(rng: np.random.Generator, shapes: Labels, hues: Labels) -> NDArray[np.uint8]:
    """Render one image per shape and hue (n,) as rows (n, 3072): red, green, blue planes."""
    n = len(shapes)
    home = np.stack([shapes % 3 - 1, shapes // 3 % 3 - 1], axis=1).astype(np.float32)
    place = 3 * home + _uniform(rng, -9, 9, n, 2)
    thing = _coverage(rng, shapes, place, _uniform(rng, 6, 10.5, n, 1, 1))
    others = (shapes + rng.integers(1, 10, n)) % 10
    distractor = _coverage(rng, others, _uniform(rng, -14, 14, n, 2), _uniform(rng, 3, 6, n, 1, 1))

    polarity = np.where(rng.random((n, 1)) < 0.5, np.float32(-1), np.float32(1))
    back = 128 - 20 * polarity + _uniform(rng, -50, 50, n, 1) + _tint(rng, hues, 0.25)
    contrast = polarity * _uniform(rng, 30, 120, n, 1) + _tint(rng, hues, 0.175)
    distractor_contrast = _uniform(rng, -100, 100, n, 3)
    slope = _uniform(rng, -25, 25, n, 2)
    axis = np.linspace(-1, 1, SIDE, dtype=np.float32)
    light = slope[:, 0, None, None] * axis + slope[:, 1, None, None] * axis[:, None]

    images = np.empty((n, 3, SIDE, SIDE), np.uint8)
    for c in range(3):
        plane = thing * contrast[:, c, None, None]
        plane += (distractor_contrast[:, c, None, None] - plane) * distractor
        plane += light + back[:, c, None, None]
        noise = rng.integers(0, 256, (2, n, SIDE, SIDE), dtype=np.uint8).astype(np.float32)
        plane += 0.17 * (noise[0] - noise[1])  # triangular, standard deviation 18 grey levels
        images[:, c] = np.rint(np.clip(plane, 0, 255))
    return images.reshape(n, 3 * SIDE * SIDE)


def label_names(official: OfficialSet) -> list[str]:
    """The names of the classes of a data set's stand-in, in the order of the labels."""
    if official.classes == len(SHAPES):
        return [*SYNTHETIC_LABELS]
    return [f"{hue}_{shape}" for shape in SYNTHETIC_LABELS for hue in HUES]


def _batch(
    rng: np.random.Generator, count: int, title: str, official: OfficialSet
) -> dict[bytes, object]:
    """Return the dict of one batch file: ``count`` images, classes balanced, in random order."""
    classes = label_names(official)
    labels = rng.permutation(np.arange(count) % len(classes))
    shapes, hues = np.divmod(labels, len(HUES)) if len(classes) > len(SHAPES) else (labels, labels)
    parts = [slice(i, i + CHUNK) for i in range(0, count, CHUNK)]
    names = [f"{classes[k]}_s_{i:06d}.png".encode() for i, k in enumerate(labels)]
    return {
        b"batch_label": title.encode(),
        official.label_key: labels.tolist(),
        b"data": np.concatenate([_render(rng, shapes[part], hues[part]) for part in parts]),
        b"filenames": names,
    }


def write_synthetic(
    directory: Path, images_per_batch: int = 10_000, seed: int = 0, official: OfficialSet = CIFAR10
) -> None:
    """Write the stand-in of a data set into ``directory`` (made if missing) as python batch files.

    The files have the names and the keys of the originals (without the coarse labels of CIFAR-100);
    read them as these, with ``pickle.load(file, encoding="bytes")``. Existing ones are replaced.

    Args:
        directory: Where the files go.
        images_per_batch: Images in the test file and, five times as many, in the training files
            together, classes balanced up to rounding.
        seed: Same seed, same images; each file draws from its own stream.
        official: The data set to stand in for.

    Raises:
        ValueError: If ``images_per_batch`` is below one image per class.
    """
    if images_per_batch < official.classes:
        raise ValueError(
            f"images_per_batch is {images_per_batch}: give at least {official.classes}, one per "
            "class"
        )
    directory.mkdir(parents=True, exist_ok=True)

    def write(name: str, content: dict[bytes, object]) -> None:
        with (directory / name).open("wb") as file:
            pickle.dump(content, file, protocol=2)

    parts = len(official.train_files)
    files = {
        name: (f"training batch {i} of {parts}", 5 * images_per_batch // parts)
        for i, name in enumerate(official.train_files, 1)
    }
    files[official.test_file] = ("testing batch 1 of 1", images_per_batch)
    streams = np.random.SeedSequence(seed).spawn(len(files))
    for (name, (title, count)), stream in zip(files.items(), streams, strict=True):
        rng = np.random.Generator(np.random.PCG64(stream))
        write(name, _batch(rng, count, title, official))
    meta: dict[bytes, object] = {
        b"num_cases_per_batch": images_per_batch,
        official.names_key: [name.encode() for name in label_names(official)],
        b"num_vis": 3 * SIDE * SIDE,
    }
    write(official.meta_file, meta)
