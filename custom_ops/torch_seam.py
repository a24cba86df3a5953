"""All that this project takes from private names of PyTorch, each under a name of its own.

No other module of it may use one (`tests/test_architecture.py`), so that here is the one place to
mend when a version of PyTorch changes them; `tests/custom_ops/test_torch_seam.py` then says which.
All were checked with torch 2.14, and the tests are run with 2.11 and later. None has a public form
that does the same at the same speed, or at all.

Where dynamo traces a function of these, it sees PyTorch's own object: they are bound to names,
or read in the plainest of functions.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _always() -> bool:
    return True


transforms_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", _always
)
"""Whether a transform of `torch.func` is going on.

Relies on: ``torch._C._are_functorch_transforms_active``, which dynamo knows too.
When it is gone: always True; every call takes the form for transforms, slower and as right.
"""


def transforming() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is going on.

    Relies on: ``forward_ad._current_level``, at least 0 within a `forward_ad.dual_level`.
    When it is gone: True, as for `transforms_active`.
    """
    try:
        return transforms_active() or forward_ad._current_level >= 0
    except AttributeError:
        return True


def no_function_will_do() -> bool:
    """Whether in a jvp of a jvp, to which a Function's tangents are constants, or functionalize.

    Relies on: ``torch._C._functorch``: ``get_interpreter_stack``, ``key()`` of what is in it, and
    ``TransformType``.
    When it is gone: True; layer normalisation is then its formula, slower and as right.
    """
    try:
        kinds = torch._C._functorch.TransformType
        levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
        return levels.count(kinds.Jvp) > 1 or kinds.Functionalize in levels
    except AttributeError:
        return True


def forward_mode() -> AbstractContextManager[None]:
    """Switches forward mode on again, which PyTorch switches off within a Function's ``jvp``.

    Relies on: ``forward_ad._set_fwd_grad_enabled``.
    When it is gone: an AttributeError in forward mode of `functions`; without it, the derivatives
    of an outer jvp would silently be lost.
    """
    return forward_ad._set_fwd_grad_enabled(True)


def traces_gradients() -> bool:
    """Whether `torch.compile` is told to trace calls of autograd, and so second derivatives.

    Relies on: ``torch._dynamo.config.trace_autograd_ops``.
    When it is gone: True; layer normalisation is compiled from its formula, slower and as right.
    """
    try:
        return bool(torch._dynamo.config.trace_autograd_ops)
    except AttributeError:
        return True


def unsafe_view(y: Tensor, shape: list[int]) -> Tensor:
    """Y, contiguous, in another shape, and no view: those of a Function resist in-place changes.

    Relies on: ``torch.ops.aten._unsafe_view``. The public way is a copy, of every output.
    When it is gone: an AttributeError in every linear layer and convolution of `functions`.
    """
    return torch.ops.aten._unsafe_view(y, shape)  # type: ignore[no-any-return]


def scripted_as(function: Any, replacement: Callable[[], Any]) -> None:
    """Lets `torch.jit.script` compile what ``replacement()`` returns in place of a function.

    Relies on: ``__prepare_scriptable__``, which `torch.jit.script` calls; undocumented.
    When it is gone: TorchScript fails of the function itself, with a long message.
    """
    function.__prepare_scriptable__ = replacement


BroadcastingList1 = torch._jit_internal.BroadcastingList1
"""How a function for TorchScript says that it takes an int or a list, as torch.nn.functional does.

Relies on: ``torch._jit_internal.BroadcastingList1``, and that TorchScript knows it by this name.
When it is gone: an AttributeError at the import; ``list[int]`` takes all but an int.
"""

# Updates of many tensors in one call, as PyTorch's own optimisers make them. Rely on:
# ``torch._foreach_add``, ``torch._foreach_add_``, ``torch._foreach_mul_``. When they are gone: an
# AttributeError at the import; a loop over the tensors does the same.
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_mul_ = torch._foreach_mul_
