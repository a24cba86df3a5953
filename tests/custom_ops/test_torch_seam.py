"""PyTorch still has the private names that `custom_ops.torch_seam` relies on, as it does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad
from torch.func import functionalize, jvp, vmap

from custom_ops import torch_seam
from custom_ops.torch_seam import (
    BroadcastingList1,
    foreach_add,
    foreach_add_,
    foreach_mul_,
    forward_mode,
    has_hooks,
    no_function_will_do,
    scripted_as,
    traces_gradients,
    transforming,
    transforms_active,
    unsafe_view,
)

X = torch.arange(6.0).view(2, 3)


def gone(item: str, what: str) -> str:
    """What a test says of an item that a version of PyTorch has changed."""
    return f"torch {torch.__version__}: {what} is not as custom_ops/torch_seam.py needs it: {item}"


def test_transforms_active() -> None:
    message = gone("transforms_active", "torch._C._are_functorch_transforms_active")
    seen: list[bool] = []

    def f(x: Tensor) -> Tensor:
        seen.append(transforms_active())
        return x

    vmap(f)(X)
    assert transforms_active is not torch_seam._always, message
    assert (seen, transforms_active()) == ([True], False), message
    compiled = torch.compile(lambda x: x + transforms_active(), backend="eager", fullgraph=True)
    assert torch.equal(vmap(compiled)(X), X + 1), message


def test_transforming() -> None:
    message = gone("transforming", "forward_ad._current_level")
    assert not transforming(), message
    with forward_ad.dual_level():
        assert transforming(), message
        assert not transforms_active(), message
    assert forward_ad._current_level == -1, message


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_has_hooks(kind: str) -> None:
    message = gone("has_hooks", "Module._forward_hooks and the like")
    module = nn.GELU()
    assert not has_hooks(module), message
    for register in (module, nn.modules.module):
        prefix = "register_" if register is module else "register_module_"
        handle = getattr(register, f"{prefix}{kind}_hook")(lambda *_: None)
        assert has_hooks(module), message
        handle.remove()
        assert not has_hooks(module), message


def test_no_function_will_do() -> None:
    message = gone("no_function_will_do", "torch._C._functorch")
    seen: list[bool] = []

    def f(x: Tensor) -> Tensor:
        seen.append(no_function_will_do())
        return x.sin()

    def tangent(x: Tensor) -> Any:
        return jvp(f, (x,), (x,))[1]

    for transformed in (f, vmap(f), tangent, vmap(tangent), functionalize(f)):
        transformed(X)
    jvp(tangent, (X,), (X,))
    assert seen == [False, False, False, False, True, True], message


class Doubled(Function):
    """2 X, which asks in its jvp whether forward mode goes on."""

    seen: tuple[bool, bool]

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None: ...

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        off = torch._C._is_fwd_grad_enabled()
        with forward_mode():
            Doubled.seen = off, torch._C._is_fwd_grad_enabled()
        return 2 * dx


def test_forward_mode() -> None:
    message = gone("forward_mode", "forward_ad._set_fwd_grad_enabled")
    _, tangent, *_ = jvp(Doubled.apply, (X,), (X,))
    assert torch.equal(tangent, 2 * X), message
    assert Doubled.seen == (False, True), message


def test_traces_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    message = gone("traces_gradients", "torch._dynamo.config.trace_autograd_ops")
    assert hasattr(torch._dynamo.config, "trace_autograd_ops"), message
    assert not traces_gradients(), message
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)
    assert traces_gradients(), message


def test_unsafe_view() -> None:
    message = gone("unsafe_view", "torch.ops.aten._unsafe_view")
    y = unsafe_view(X, [3, 2])
    assert y.data_ptr() == X.data_ptr() and y.shape == (3, 2), message
    assert not y._is_view(), message


def test_scripted_as() -> None:
    message = gone("scripted_as", "__prepare_scriptable__")

    def in_python(x: Tensor) -> Tensor:
        return next(map(torch.sin, x))

    def in_script(x: Tensor) -> Tensor:
        return x + 1

    scripted_as(in_python, lambda: in_script)
    assert torch.equal(torch.jit.script(in_python)(X), X + 1), message


def of_lengths(shape: BroadcastingList1[int]) -> int:  # type: ignore[valid-type]
    """A function for TorchScript that takes an int or a list."""
    total: list[int] = shape
    return len(total)


def test_broadcasting_list() -> None:
    message = gone("BroadcastingList1", "torch._jit_internal.BroadcastingList1")

    class Module(nn.Module):
        def forward(self, x: Tensor) -> int:
            return of_lengths(3) + of_lengths([1, 2])

    assert torch.jit.script(Module())(X) == 3, message


def test_foreach() -> None:
    message = gone("foreach_add, foreach_add_, foreach_mul_", "torch._foreach_*")
    changed = [X.clone(), X.clone()]
    foreach_mul_(changed, 3.0)
    assert all(torch.equal(x, 3 * X) for x in changed), message
    foreach_add_(changed, [X, X], alpha=-2.0)
    assert all(torch.equal(x, X) for x in changed), message
    assert all(torch.equal(x, 1.5 * X) for x in foreach_add(changed, [X, X], alpha=0.5)), message
