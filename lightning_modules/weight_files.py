"""Files of weights that were learned elsewhere: what is in them, or what they are instead."""

import argparse
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Under what training programs keep a state dict, perhaps within another mapping.
_KEPT_AS = {"state_dict", "model_state_dict", "model", "net", "network", "weights", "model_ema"}
_SAVE_STATE = "save its state_dict() with torch.save"
# What people take for weights, by its first bytes.
_NO_WEIGHTS = (
    (b"<", "an HTML page, as of a failed download: download it again"),
    (b"version https://git-lfs", "a pointer of Git LFS: fetch the file with git lfs pull"),
    (b"\x89HDF", "an HDF5 file, as of Keras: name one of torch.save"),
    (b"\x1f\x8b", "compressed: unpack it with gunzip"),
)
_LONGEST_HEADER = 10**8  # of safetensors


def prefix_of(found: Mapping[str, Tensor], asked: list[str]) -> str:
    """What stands in front of a network's names in a file: ``module.``, or nothing.

    Args:
        found: the weights in the file.
        asked: the network's names that must be there.

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
    """Why a weight of a file can't be one of the network's; empty if it can."""
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
    """Whether a file's values may be copied into a weight of the network's dtype."""
    if theirs.is_floating_point() == ours.is_floating_point():
        return True
    # A whole state dict that was cast to half precision has its counts cast, too.
    return theirs.is_floating_point() and bool((theirs == theirs.round()).all())


def read_state(path: Path) -> dict[str, Tensor]:
    """Reads the state dict that a file is or holds, without running code from it.

    Raises:
        ValueError: naming what the file is instead, and the remedy.
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
        # torchvision's training program keeps its arguments beside the weights.
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
    except Exception as error:  # what torch says of a broken file differs from part to part
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} can't be read: {reason}; {remedy}") from error
    try:
        return _state_in(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no state dict: {error}; {remedy}") from error


def _named(path: Path, start: bytes) -> str:
    """What a file is that people take for weights, and what to do; empty if it may be some."""
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
    """The state dict that a checkpoint is or holds.

    Raises:
        ValueError: naming what it is instead, or that there are several.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"it holds a {type(content).__name__}")
    if _is_state(content):
        return dict(content)
    states = {key: value for key, value in content.items() if _is_state(value)}
    below = {key: v for key, v in content.items() if key in _KEPT_AS and isinstance(v, Mapping)}
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
    """A layer's name and its weight's, without what is around the layer."""
    return {".".join(str(key).split(".")[-2:]) for key in state}


def _is_state(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    )
