"""All uses of private names of PyTorch, each behind a name of this module.

No other module may use such a name (`tests/test_architecture.py`). If a version of PyTorch changes
one, `tests/custom_ops/test_torch_seam.py` names it, and only this module must change. All were
checked with torch 2.14, and the tests are run with 2.11 and later. No public name does the same at
the same speed, or at all.

When dynamo traces one of these functions, it must see PyTorch's own object. So the names are bound
directly, or read in very simple functions.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def _always() -> bool:
    return True


transforms_active: Callable[[], bool] = getattr(
    torch._C, "_are_functorch_transforms_active", _always
)
"""Whether a transform of `torch.func` is active.

Relies on: ``torch._C._are_functorch_transforms_active``, which dynamo knows too.
When it is gone: always True; every call uses the form for transforms, slower but correct.
"""


def transforming() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is active.

    Relies on: ``forward_ad._current_level``, at least 0 within a `forward_ad.dual_level`.
    When it is gone: True, with the effect of `transforms_active`.
    """
    try:
        return transforms_active() or forward_ad._current_level >= 0
    except AttributeError:
        return True


def no_function_will_do() -> bool:
    """Whether functionalize runs, or a jvp of a jvp (a Function's tangents are constants in it).

    Relies on: ``torch._C._functorch``: ``get_interpreter_stack``, ``key()`` of its entries, and
    ``TransformType``.
    When it is gone: True; layer normalisation then uses its formula, slower but correct.
    """
    try:
        kinds = torch._C._functorch.TransformType
        levels = [level.key() for level in torch._C._functorch.get_interpreter_stack() or ()]
        return levels.count(kinds.Jvp) > 1 or kinds.Functionalize in levels
    except AttributeError:
        return True


def forward_mode() -> AbstractContextManager[None]:
    """Turns forward mode on again, which PyTorch turns off inside a Function's ``jvp``.

    Relies on: ``forward_ad._set_fwd_grad_enabled``.
    When it is gone: an AttributeError in forward mode of `functions`. Without this call, the
    derivatives of an outer jvp would silently be lost.
    """
    return forward_ad._set_fwd_grad_enabled(True)


def traces_gradients() -> bool:
    """Whether `torch.compile` traces calls of autograd, and so second derivatives.

    Relies on: ``torch._dynamo.config.trace_autograd_ops``.
    When it is gone: True; layer normalisation is compiled from its formula, slower but correct.
    """
    try:
        return bool(torch._dynamo.config.trace_autograd_ops)
    except AttributeError:
        return True


def unsafe_view(y: Tensor, shape: list[int]) -> Tensor:
    """Y, contiguous, in another shape; not a view, as views of a Function forbid in-place changes.

    Relies on: ``torch.ops.aten._unsafe_view``. The public way is a copy of every output.
    When it is gone: an AttributeError in every linear layer and convolution of `functions`.
    """
    return torch.ops.aten._unsafe_view(y, shape)  # type: ignore[no-any-return]


def has_hooks(module: nn.Module) -> bool:
    """Whether a hook waits for the forward or the backward pass of this module, or of all.

    Relies on: ``Module._forward_hooks``, ``_forward_pre_hooks``, ``_backward_hooks`` and
    ``_backward_pre_hooks``, and ``torch.nn.modules.module._has_any_global_hook``.
    When they are gone: True; every module is called by itself, slower but correct.
    """
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_all = getattr(nn.modules.module, "_has_any_global_hook", _always)
    return any(getattr(module, name, True) for name in names) or bool(of_all())


def scripted_as(function: Any, replacement: Callable[[], Any]) -> None:
    """Makes `torch.jit.script` compile the result of ``replacement()`` instead of a function.

    Relies on: ``__prepare_scriptable__``, which `torch.jit.script` calls; undocumented.
    When it is gone: TorchScript fails on the function itself, with a long message.
    """
    function.__prepare_scriptable__ = replacement


BroadcastingList1 = torch._jit_internal.BroadcastingList1
"""The annotation for an int or a list in TorchScript, as in torch.nn.functional.

Relies on: ``torch._jit_internal.BroadcastingList1``, and that TorchScript knows it by this name.
When it is gone: an AttributeError at the import; ``list[int]`` takes everything except an int.
"""

# Updates of many tensors in one call, as in PyTorch's own optimisers. They rely on:
# ``torch._foreach_add``, ``torch._foreach_add_``, ``torch._foreach_mul_``. When they are gone: an
# AttributeError at the import; a loop over the tensors does the same.
foreach_add = torch._foreach_add
foreach_add_ = torch._foreach_add_
foreach_mul_ = torch._foreach_mul_
