"""Fine-tunes a network of torchvision with weights from a file (the assignment's bonus 4 b)."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from lightning_modules.classifier import Classifier

# Files of DenseNets have the old names of layers: norm.1 instead of norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
# Parts that torch's wrappers add to the names of layers.
_WRAPPERS = re.compile(
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|(?<=\.)module)\."
)

# Keys under which training programs store a state dict, perhaps inside another mapping.
_STATE_KEYS = {"state_dict", "model_state_dict", "model", "net", "network", "weights", "model_ema"}
_SAVE_STATE = "save its state_dict() with torch.save"
# Files that are mistaken for weights, by their first bytes.
_NO_WEIGHTS = (
    (b"<", "an HTML page, as of a failed download: download it again"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"\x89HDF", "an HDF5 file, as of Keras: name one of torch.save"),
    (b"\x1f\x8b", "compressed: unpack it with gunzip"),
)
_LONGEST_HEADER = 10**8  # of safetensors


class FineTuned(Classifier):
    """A classification network of torchvision with a new last layer.

    The weights come from a file as distributed by torchvision (a state dict, with any number of
    classes); nothing is downloaded. The file may also be a checkpoint that holds a state dict, and
    names may have a prefix (``module.``, ``_orig_mod.``, ``backbone.``). The last layer is always
    new. Images are enlarged on the device, because these networks were made for larger images.

    Args:
        architecture: a name of ``torchvision.models``, for example ``resnet18``.
        weights: the file; null trains from scratch. It is read at the start of a fit, but not by a
            resume or a test.
        image_size: side of the enlarged images, in pixels.
        freeze: train only the last layer; the others keep weights and running statistics.
        **kwargs: see `Classifier`.

    Raises:
        ValueError: for an unknown architecture, an unsupported size, or a file that can't be read
            or belongs to another network.
    """

    takes_half_precision = True

    def __init__(
        self,
        architecture: str = "resnet18",
        weights: str | None = None,
        image_size: int = 128,
        freeze: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        known = models.list_models(module=models)
        if architecture not in known:
            raise ValueError(f"no architecture {architecture!r}; there are {', '.join(known)}")
        if image_size < 32:
            raise ValueError(f"model.image_size must be at least 32, got {image_size}")
        if freeze and weights is None:
            raise ValueError("model.freeze keeps what model.weights brings: name a file")
        self.weights = weights
        self.image_size = image_size
        self.frozen = freeze
        self._has_weights = False
        self.network = models.get_model(architecture, weights=None, num_classes=self.num_classes)
        self.network.to(memory_format=torch.channels_last)
        self._try_size()
        if freeze:
            self._freeze()

    def _try_size(self) -> None:
        """Tests the image size without arithmetic: some networks need 224 pixels."""
        state = {name: value.to("meta") for name, value in self.network.state_dict().items()}
        images = torch.zeros(2, 3, self.image_size, self.image_size, device="meta")
        try:
            with torch.no_grad():
                torch.func.functional_call(self.network, state, images)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"a {self.hparams['architecture']} takes no images of {self.image_size} pixels "
                f"({str(error).splitlines()[0].rstrip('.')}): try --model.image_size 224, or 299"
            ) from error

    def _freeze(self) -> None:
        last = self._outputs()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] in last)
        self.network.eval()

    def _outputs(self) -> set[str]:
        """The output layers: the last one, and those of auxiliary classifiers."""
        classes = self.num_classes
        found = {
            name: getattr(layer, "out_features", getattr(layer, "out_channels", None))
            for name, layer in self.network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        *_, last = found
        return {last} | {n for n, size in found.items() if size == classes and "aux" in n.lower()}

    def prepare_fit(self, goes_on: bool) -> None:
        """Loads the file of weights, unless a checkpoint has them.

        Raises:
            ValueError: if the file can't be read, or belongs to another network.
        """
        if self.weights is not None and not goes_on and not self._has_weights:
            self._load(Path(self.weights))
        self._has_weights = True

    def setup(self, stage: str) -> None:
        """Loads the weights at the start of a fit, if `prepare_fit` was not called."""
        if stage == "fit":
            self.prepare_fit(goes_on=False)

    def _load(self, path: Path) -> None:
        read = read_state(path)
        found = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", key)): read[key] for key in read}
        try:
            if len(found) < len(read):
                raise ValueError("it holds some weights twice, wrapped and not, save one alone")
            state = self._matching(found)
        except ValueError as error:
            architecture = self.hparams["architecture"]
            raise ValueError(
                f"{path} is not of a {architecture}: {error}; see --model.architecture"
            ) from error
        self.network.load_state_dict(state, strict=False)

    def _matching(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights in a file for all layers except the last, by the names of this network."""
        heads = tuple(f"{name}." for name in self._outputs())
        ours = {
            key: value
            for key, value in self.network.state_dict().items()
            if not key.startswith(heads)
        }
        # Old files lack these counters.
        asked = [key for key in ours if not key.endswith("num_batches_tracked")]
        before = prefix_of(found, asked)
        theirs = {
            name: value
            for key, value in found.items()
            if key.startswith(before) and not (name := key.removeprefix(before)).startswith(heads)
        }
        for key in dict.fromkeys([*asked, *theirs]):
            is_count = key not in ours and key.endswith("num_batches_tracked")
            if not is_count and (reason := difference(theirs.get(key), ours.get(key))):
                also = [name for name in found if f".{name}".endswith(f".{key}")]
                elsewhere = f" (it is there as {also[0]})" if also and key not in theirs else ""
                raise ValueError(f"{key} {reason}{elsewhere}")
        return theirs

    def train(self, mode: bool = True) -> "FineTuned":
        """Sets the mode; frozen layers stay in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``."""
        size = (self.image_size, self.image_size)
        large = F.interpolate(images, size, mode="bilinear", antialias=False)
        outputs = self.network(large.to(memory_format=torch.channels_last))
        # A tuple in training with auxiliary classifiers; the main logits come first.
        logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return logits


def prefix_of(found: Mapping[str, Tensor], asked: list[str]) -> str:
    """The prefix of a network's names in a file: ``module.``, or nothing.

    Args:
        found: the weights in the file.
        asked: the required names of the network.

    Raises:
        ValueError: if it holds several such networks.
    """
    ends = {key.removesuffix(asked[0]) for key in found if f".{key}".endswith(f".{asked[0]}")}
    whole = sorted(end for end in ends if all(f"{end}{key}" in found for key in asked))
    if len(whole) > 1:
        names = ", ".join(end.rstrip(".") or "the first" for end in whole)
        raise ValueError(f"it holds {len(whole)} of them ({names}), save one alone")
    return whole[0] if whole else min(ends, key=len, default="")


def difference(theirs: Tensor | None, ours: Tensor | None) -> str:
    """The reason why a weight of a file does not fit the network; empty if it fits."""
    if theirs is None:
        return "is missing"
    if ours is None:
        return "is not in the network"
    if theirs.shape != ours.shape:
        return f"has shape {tuple(theirs.shape)}, and {tuple(ours.shape)} in the network"
    is_dense = theirs.layout is torch.strided and not theirs.is_meta and not theirs.is_quantized
    if not is_dense or not _is_convertible(theirs, ours):
        return f"is a tensor of {theirs.dtype} ({theirs.layout}, on {theirs.device})"
    return "" if theirs.isfinite().all() else "has values that are not finite"


def _is_convertible(theirs: Tensor, ours: Tensor) -> bool:
    """Whether the values of a file can be copied to a weight of the network's dtype."""
    if theirs.is_floating_point() == ours.is_floating_point():
        return True
    # If a whole state dict was cast to half precision, so were its counters.
    return theirs.is_floating_point() and bool((theirs == theirs.round()).all())


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the state dict in a file, without running code from it.

    Raises:
        ValueError: naming the kind of the file, and the remedy.
    """
    remedy = "name a state dict of torchvision with --model.weights"
    try:
        path = path.expanduser()
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no file; {remedy}")
        with path.open("rb") as file:
            start = file.read(2**20)
        if known := _named(path, start):
            raise ValueError(f"{path} is {known}")
        # The training program of torchvision stores its arguments with the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"no weights {path}; {remedy}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than weights and is refused, since loading it could run code: "
            f"{_SAVE_STATE}, or {remedy}"
        ) from error
    except ValueError:
        raise
    except Exception as error:  # torch raises different errors for a broken file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} can't be read: {reason}; {remedy}") from error
    try:
        return _state_in(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no state dict: {error}; {remedy}") from error


def _named(path: Path, start: bytes) -> str:
    """The kind and remedy of a file that is mistaken for weights; empty if it may be weights."""
    for sign, name in _NO_WEIGHTS:
        if start.startswith(sign):
            return name
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < _LONGEST_HEADER:
        return (
            "a file of safetensors: convert it with "
            "torch.save(safetensors.torch.load_file(FILE), 'weights.pth')"
        )
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if any(name.endswith("/constants.pkl") for name in file.namelist()):
                return f"a TorchScript model: {_SAVE_STATE}"
    if b"torch.nn.modules." in start:
        return f"a whole pickled model, and refused, since loading it could run code: {_SAVE_STATE}"
    return ""


def _state_in(content: Any) -> dict[str, Tensor]:
    """The state dict in a checkpoint.

    Raises:
        ValueError: if there is none, or several.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"it holds a {type(content).__name__}")
    if _is_state(content):
        return dict(content)
    states = {key: value for key, value in content.items() if _is_state(value)}
    below = {key: v for key, v in content.items() if key in _STATE_KEYS and isinstance(v, Mapping)}
    found = states | below
    if len(below) == 1:  # a second copy of the network is ambiguous; other tensors are not
        of_it = _last_names(*below.values())
        found = below | {key: state for key, state in states.items() if of_it & _last_names(state)}
    if len(found) == 1:
        return _state_in(*found.values())
    if found:
        raise ValueError(f"it holds several, {', '.join(map(str, found))}, save one alone")
    other = next(
        key
        for key, value in content.items()
        if not isinstance(value, Tensor) or not isinstance(key, str)
    )
    raise ValueError(f"its {other!r:.40} is a {type(content[other]).__name__}")


def _last_names(state: Mapping[Any, Any]) -> set[str]:
    """The names of a layer and its weight, without the modules around the layer."""
    return {".".join(str(key).split(".")[-2:]) for key in state}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )
