"""Dispatcher operators without derivatives, whose kernels are looked for at their first use."""

import threading
from collections.abc import Callable
from typing import Any

import torch


def load_on_cpu(name: str, device_type: str) -> bool:
    """Builds and loads kernels if they are asked for on the CPU.

    Args:
        name: a key of `cpu.SOURCES`.
        device_type: the type of device that searches for kernels.

    Returns:
        Whether the kernels now compute tensors on this type of device.
    """
    if device_type != "cpu":
        return False
    from custom_ops import cpu  # noqa: PLC0415  only needed here

    return cpu.load(name)


class Kernels:
    """The search for the kernels of some operators, made once for each type of device.

    Args:
        load: loads the kernels for a type of device, and returns whether there are any.

    Attributes:
        found: types of devices with a completed search, and whether it found kernels.
    """

    def __init__(self, load: Callable[[str], bool]) -> None:
        self.found: dict[str, bool] = {}
        self._load = load
        self._lock = threading.Lock()

    def load(self, device_type: str) -> bool:
        """Loads the kernels for a type of device, if there are any, in the first call for it.

        Returns:
            Whether this call, or another thread during it, has loaded kernels.
        """
        if device_type in self.found:
            return False
        with self._lock:
            if device_type not in self.found:
                found = False  # also if warnings are errors
                try:
                    found = self._load(device_type)
                finally:
                    self.found[device_type] = found
            return self.found[device_type]

    def found_for(self, device_type: str) -> bool:
        """Whether kernels compute tensors on a type of device; loads them in the first call."""
        self.load(device_type)
        return self.found[device_type]

    def register(
        self, library: Any, name: str, computed: Callable[..., Any], fake: Callable[..., Any]
    ) -> None:
        """Implements an operator for devices without a loaded kernel: searches for one first.

        The search is never made under a compiler, and at most once if there is a kernel, so no
        other call pays for it.

        Args:
            library: the `torch.library.Library` that defines the operator.
            name: of the operator.
            computed: computes it where there is no kernel.
            fake: makes its results without values.
        """

        def answer(*arguments: Any) -> Any:
            if self.load(arguments[0].device.type):
                return getattr(torch.ops.custom_ops, name)(*arguments)
            return computed(*arguments)

        library.impl(name, answer, "CompositeExplicitAutograd")
        # A Function defines the derivatives; PyTorch's search for them takes 1 us in each call.
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"custom_ops::{name}", fake, lib=library)
