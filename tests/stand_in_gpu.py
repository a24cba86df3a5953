"""A stand-in for a CUDA device: its tensors say ``cuda:0``, and the CPU computes what they hold.

An operation on tensors of two devices is an error, as on a GPU. So is NumPy on a tensor of the
device; and where the host must not wait for the device, whatever makes it wait. What a GPU computes
in another way than the CPU, in which order, and in how much memory, is not shown.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from datamodules.transforms import AugmentedImages
from lightning_modules import Classifier

GPU = torch.device("cuda", 0)
# What torch itself takes the tensors for: it has no device of CUDA here, and knows nothing of this
# one, whose gradients it nevertheless takes where it takes those of the CPU.
_CARRIER = torch.device("lazy")
_CPU = torch.device("cpu")
_aten: Any = torch.ops.aten
# They read a number from the device, or need one to know the shape of their result.
_WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "bincount",
    "repeat_interleave",
}
_COPIES = {"_to_copy", "copy_", "_copy_from"}


class GpuTensor(Tensor):
    """A tensor of the stand-in: what it holds lies in ``held``, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls: type["GpuTensor"], held: Tensor) -> "GpuTensor":
        made: GpuTensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=_CARRIER,
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where the tensor says it is."""
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        """So that code takes the way of the GPU."""
        return True

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"GpuTensor({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Saved as a tensor of the CPU: checkpoints are read with ``map_location="cpu"``."""
        return self.held.detach().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class MixedDevicesError(RuntimeError):
    """Tensors of two devices met in one operation."""


class HostWaitsError(RuntimeError):
    """The host waits for the device within a step."""


class _Watch:
    """What is forbidden at the moment."""

    within_step = False


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Runs an operation on what its tensors hold, and puts the result on the right device."""
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, GpuTensor)]
    name = func.overloadpacket.__name__
    to = kwargs.get("device")
    if name in _COPIES:
        _watch_copy(func, args, kwargs, name)
    elif ours:
        others = [x for x in tensors if not isinstance(x, GpuTensor)]
        # As on a GPU, a number of the CPU may take part.
        if any(x.ndim for x in others) or (others and name.endswith("_foreach")):
            shapes = [tuple(x.shape) for x in others]
            raise MixedDevicesError(f"{func}: tensors on cuda:0 and, of shape {shapes}, on the CPU")
        if name in _WAITING:
            _wait(f"{func}")
    if to is not None and _is_ours(to):
        kwargs = {**kwargs, "device": _CPU}
    result = func(*_held(args), **_held(kwargs))
    on_gpu = _is_ours(to) if to is not None else bool(ours)
    if name in {"copy_", "_copy_from"}:
        on_gpu = isinstance(args[0], GpuTensor)
    return _given_back(func, args, kwargs, result) if on_gpu else result


def _held(value: Any) -> Any:
    return tree_map(lambda x: x.held if isinstance(x, GpuTensor) else x, value)


def _given_back(func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
    """The result as tensors of the device; what was changed in place is the tensor that it was."""
    flat, _ = tree_flatten((args, kwargs))
    known = {id(x.held): x for x in flat if isinstance(x, GpuTensor)}
    return tree_map(lambda x: known.get(id(x), _wrapped(x)) if isinstance(x, Tensor) else x, result)


def _wrapped(x: Tensor) -> Tensor:
    return x if isinstance(x, GpuTensor) else GpuTensor(x)


def _watch_copy(func: Any, args: Any, kwargs: dict[str, Any], name: str) -> None:
    source = args[1] if name == "copy_" else args[0]
    from_gpu = isinstance(source, GpuTensor)
    to_gpu = from_gpu if kwargs.get("device") is None else _is_ours(kwargs["device"])
    if name == "copy_":
        to_gpu = isinstance(args[0], GpuTensor)
    if from_gpu != to_gpu and not kwargs.get("non_blocking"):
        _wait(f"{func} of a tensor from {source.device}")


def _is_ours(device: Any) -> bool:
    return torch.device(device).type == _CARRIER.type


def _wait(what: str) -> None:
    if _Watch.within_step:
        _Watch.within_step = False  # what clears up may wait
        raise HostWaitsError(f"a training step waits for the device: {what}")


# They copy in C++, past any mode.
_FROM_NUMBERS = (torch.tensor, torch.as_tensor)
_NAMES = (torch.device, torch._C._nn._parse_to)  # they only speak of devices


class _Renamed(TorchFunctionMode):
    """Calls the device by the name under which torch carries it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.cuda:
            return args[0].to(_CARRIER)
        if func in _NAMES:
            return func(*args, **(kwargs or {}))
        kwargs = {key: _renamed(value) for key, value in (kwargs or {}).items()}
        if func in _FROM_NUMBERS and kwargs.get("device") is _CARRIER:
            return func(*args, **{**kwargs, "device": _CPU}).to(_CARRIER, non_blocking=True)
        return func(*map(_renamed, args), **kwargs)


def _renamed(value: Any) -> Any:
    is_gpu = isinstance(value, torch.device) and value.type == "cuda"
    return _CARRIER if is_gpu or (isinstance(value, str) and value[:4] == "cuda") else value


class _OnGpu(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes tensors on the stand-in where a function is told ``device="cuda"``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


# What of `torch.cuda` Lightning and this project ask; the device knows one kind of answer.
_ANSWERS: dict[str, Any] = {
    "is_available": True,
    "device_count": 1,
    "get_device_capability": (9, 0),
    "get_device_name": "stand-in",
    "is_bf16_supported": True,
    "current_device": 0,
    "set_device": None,
    "empty_cache": None,
    "get_rng_state_all": [],
    "set_rng_state_all": None,
    "manual_seed_all": None,
    "reset_peak_memory_stats": None,
    "max_memory_allocated": 2**20,
}


def _setting(within: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """A hook that first says whether a step goes on."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        _Watch.within_step = within
        return function(*args)

    return call


def _during(within: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is, or is not, part of a step, whatever is around it."""

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        before, _Watch.within_step = _Watch.within_step, within
        result = function(*args)
        _Watch.within_step = before
        return result

    return call


@contextlib.contextmanager
def stand_in(seeds: list[int] | None = None) -> Iterator[None]:
    """Has this process find one GPU, until the context ends.

    Args:
        seeds: gets what the device's random numbers are seeded with.
    """
    noted: list[int] = [] if seeds is None else seeds

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    with pytest.MonkeyPatch.context() as monkeypatch, _OnGpu(), _Renamed():  # type: ignore[no-untyped-call]
        for name, value in _ANSWERS.items():
            monkeypatch.setattr(torch.cuda, name, answer(value))
        # A CPU tensor can't become one of another class: a module that moves gets new ones.
        future = torch.__future__
        monkeypatch.setattr(future, "get_overwrite_module_params_on_conversion", answer(True))
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            monkeypatch.setattr(Optimizer, name, answer(None), raising=False)
        monkeypatch.setattr(torch.cuda, "manual_seed", noted.append)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: _wait("synchronize"))
        _Watch.within_step = False
        for hook, within in (("on_train_batch_start", True), ("on_train_batch_end", False)):
            monkeypatch.setattr(Classifier, hook, _setting(within, getattr(Classifier, hook)))
        for owner, name, within in (
            (AugmentedImages, "__getitem__", True),
            (Strategy, "teardown", False),
            (AveragedModel, "update_parameters", False),  # torch's own: asks the device for a count
        ):
            monkeypatch.setattr(owner, name, _during(within, getattr(owner, name)))
        yield
