"""A trained model to take away: ``load`` it with all that it needs, and ``predict`` from Python.

>>> from experiments import load
>>> model = load("runs/my-mlp")  # or a checkpoint alone, wherever it lies
>>> model.predict("cat.jpg").labels
['cat']
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import lightning_modules
from datamodules.pictures import pixels_of, read_images
from datamodules.transforms import Normalizer
from experiments.checkpoints.evaluations import checkpoint_of
from experiments.checkpoints.loading import check_model, load_checkpoint, state_of_data
from experiments.errors import RunError
from experiments.records.runs import flat_config
from experiments.texts import printable
from lightning_modules import Classifier

Images = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor
BATCH = 1000  # images at once, as in `cli.py predict`
# Lightning's words for precisions, with the dtype of the weights, or of autocast.
_TRUE = {
    "32-true": torch.float32,
    "64-true": torch.float64,
    "bf16-true": torch.bfloat16,
    "16-true": torch.float16,
}
_MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@dataclass(frozen=True)
class Predictions:
    """What a model says of some images.

    Attributes:
        names: of the images: files, or their numbers.
        labels: the class of each image.
        probabilities: float32 ``(images, classes)``.
        classes: the names of the columns of ``probabilities``.
    """

    names: list[str]
    labels: list[str]
    probabilities: np.ndarray[Any, np.dtype[np.float32]]
    classes: list[str]


class Predictor:
    """A trained model with its normalisation, its classes and the precision that it learned in.

    Args:
        model: with its weights.
        normalizer: with the statistics of its training images.
        classes: their names, in the order of the logits.
        precision: Lightning's word for it, such as ``bf16-mixed``.
        device: where to compute.
    """

    def __init__(
        self,
        model: Classifier,
        normalizer: Normalizer,
        classes: Sequence[str],
        precision: str = "32-true",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.dtype = _TRUE.get(precision, torch.float32)
        self.model = model.to(self.device, self.dtype).eval()
        self.normalizer = normalizer
        self.classes = list(classes)
        self.precision = precision

    def predict(self, images: Images | Sequence[Images]) -> Predictions:
        """Predicts the classes of images, as ``cli.py predict`` does.

        Args:
            images: a picture of any size: a file, a `PIL.Image.Image`, a uint8 array ``(H, W, 3)``
                or a uint8 tensor ``(3, H, W)``; a folder of files; an array ``(N, H, W, 3)`` or a
                tensor ``(N, 3, H, W)`` of many; or a list of any of these.

        Raises:
            DatasetError: for a file that is missing or no picture.
            TypeError: for pixels that are not uint8.
            ValueError: for pixels of another shape.
        """
        found = _collect(images)
        if not found:
            raise ValueError("predict got no images")
        names = [name or str(number) for number, (name, _) in enumerate(found)]
        pixels = np.stack([picture for _, picture in found])
        probabilities = self.probabilities(torch.from_numpy(pixels)).numpy()
        labels = [self.classes[best] for best in probabilities.argmax(1)]
        return Predictions(names, labels, probabilities, self.classes)

    @torch.inference_mode()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities, float32 ``(N, classes)``, of uint8 images ``(N, 3, 32, 32)``."""
        found = []
        for batch in torch.split(images, BATCH):
            inputs = self.normalizer(batch.to(self.device)).to(self.dtype)
            with self._autocast():
                found.append(self.model.predict_step((inputs,), 0).float().cpu())
        return torch.cat(found)

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision not in _MIXED:
            return nullcontext()
        return torch.autocast(self.device.type, _MIXED[self.precision])


def load(
    source: str | Path,
    model_class: type[Classifier] | None = None,
    device: str | torch.device = "cpu",
) -> Predictor:
    """Loads a trained model with all that it needs to predict. No code of the file is run.

    Args:
        source: a run's folder, the name of one in ``runs/``, or a checkpoint, which needs no run.
        model_class: the class of the model, if it is not one of this project.
        device: where to compute.

    Raises:
        RunError: if there is no such run or checkpoint, or it can't be used; the message names the
            remedy.
        TypeError: if an argument is of another type.
    """
    if not isinstance(source, str | Path):
        raise TypeError(
            f"load expected a run's folder or name, or a checkpoint, got {source!r:.40}"
        )
    if model_class is not None and not _is_classifier(model_class):
        raise TypeError(
            f"model_class expected a class derived from Classifier, got {model_class!r:.60}"
        )
    path = checkpoint_of(Path(source).expanduser())
    content = load_checkpoint(path)
    kind = model_class or _known_class(path, str(content.get("model_class")))
    _, state = state_of_data(path, content)
    try:
        settings = content["hyper_parameters"]  # names with _ in front are Lightning's own
        model = kind(**{name: settings[name] for name in settings if not name.startswith("_")})
        normalizer = Normalizer(state["normalization"])
        normalizer.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path} does not fit {kind.__name__}: {reason}") from error
    check_model(path, content, model)
    names, precision = state["label_names"], content.get("precision", "32-true")
    if len(names) != model.num_classes:
        raise RunError(
            f"{path} names {len(names)} of {model.num_classes} classes: name another checkpoint"
        )
    if precision not in {*_TRUE, *_MIXED}:
        known = ", ".join([*_TRUE, *_MIXED])
        raise RunError(
            f"{path} was trained in {precision}, and load knows {known}: use cli.py predict instead"
        )
    model.load_state_dict(content["state_dict"])
    try:
        return Predictor(model, normalizer, names, precision, device)
    except (RuntimeError, AssertionError) as error:  # PyTorch has no such device
        reason = str(error).partition("\n")[0]
        raise RunError(f"device {device}: {reason}; take another, such as cpu") from error


def _is_classifier(kind: object) -> TypeGuard[type[Classifier]]:
    return isinstance(kind, type) and issubclass(kind, Classifier)


def _known_class(path: Path, name: str) -> type[Classifier]:
    kind = getattr(lightning_modules, name, None)
    if not _is_classifier(kind):
        raise RunError(
            f"{path} holds a model of the class {name}, which is not of this project: pass it, "
            f"load(..., model_class={name.rpartition('.')[2]}) or --model_class "
            f"{_class_path(path.parent) or 'MODULE.CLASS'}"
        )
    return kind


def _class_path(run: Path) -> str:
    """The class of the model in the configuration of a run; empty if there is none."""
    try:
        return printable(str(flat_config(run)["model"]))
    except (OSError, ValueError, LookupError):
        return ""


def _collect(images: Images | Sequence[Images]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    """Pictures as uint8 ``(3, 32, 32)``, each with the name of its file."""
    if isinstance(images, str | Path) and str(images):
        found = read_images(Path(images).expanduser(), "name a picture, or a folder of pictures")
        return list(zip(found.names, found.images, strict=True))
    if isinstance(images, Image.Image):
        return [("", pixels_of(images))]
    if isinstance(images, Tensor):
        _check_pixels(images)  # NumPy lacks some dtypes
        if images.ndim not in (3, 4) or images.shape[-3] != 3:
            raise ValueError(
                f"predict expected a tensor (3, H, W), got one of shape {tuple(images.shape)}: "
                + _remedy(tuple(images.shape), -3, -1, "images.movedim(-1, -3)")
            )
        return _of_arrays(images.movedim(-3, -1).cpu().numpy())
    if isinstance(images, np.ndarray):
        return _of_arrays(images)
    if isinstance(images, list | tuple):
        return [picture for image in images for picture in _collect(image)]
    raise TypeError(
        "predict expected a path, a PIL image, an array, a tensor or a list of these, got "
        f"{images!r:.40}"
    )


def _check_pixels(images: np.ndarray[Any, Any] | Tensor) -> None:
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype != "uint8":
        to = ".to(torch.uint8)" if isinstance(images, Tensor) else ".astype('uint8')"
        how = f"images{to}" if "int" in dtype else f"(images * 255).round(){to} if they are 0 to 1"
        raise TypeError(
            f"predict expected uint8 pixels from 0 to 255, got {dtype}: convert them with {how}; "
            "they are normalised here"
        )


def _remedy(shape: tuple[int, ...], channels: int, elsewhere: int, move: str) -> str:
    """How to make images of a shape acceptable.

    Args:
        shape: of an image or of many.
        channels: the axis where the channels should be.
        elsewhere: the axis where they may be instead.
        move: code that moves them from there.
    """
    if len(shape) in (3, 4):
        if shape[elsewhere] == 3:
            return f"move the channels with {move}"
        if shape[channels] == 4:
            return "leave out the fourth channel, which is the opacity"
    return "pass RGB, as of PIL's Image.fromarray(image).convert('RGB')"


def _of_arrays(images: np.ndarray[Any, Any]) -> list[tuple[str, np.ndarray[Any, Any]]]:
    _check_pixels(images)
    if images.ndim not in (3, 4) or images.shape[-1] != 3 or 0 in images.shape[-3:]:
        raise ValueError(
            f"predict expected an array (H, W, 3), got one of shape {images.shape}: "
            + _remedy(images.shape, -1, -3, "np.moveaxis(images, -3, -1)")
        )
    many = images if images.ndim == 4 else images[None]
    return [("", pixels_of(Image.fromarray(image))) for image in many]
