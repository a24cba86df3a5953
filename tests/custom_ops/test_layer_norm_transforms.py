"""LayerNorm under every transform of PyTorch, against the formula as one would write it down.

All in float64, where that formula is exact enough; PyTorch's own layer_norm is no reference here:
its third derivatives and nested tangents are not the derivatives of anything.
"""

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    vjp,
    vmap,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from custom_ops import LayerNorm, layer_norm, torch_seam
from custom_ops.layer_norm import formula
from tests.conftest import mark_slow
from tests.custom_ops.cases import VARIANTS, each_variant, normal, plain

Norm = Callable[..., Tensor]
Computation = Callable[[Norm], Any]
M = 6

X, DX, XS = normal(4, M), normal(4, M, seed=1), normal(3, 4, M, seed=2)
WEIGHT, DWEIGHT, WEIGHTS = normal(M, seed=3), normal(M, seed=4), normal(3, M, seed=5)
BIAS, DBIAS, BIASES = normal(M, seed=6), normal(M, seed=7), normal(3, M, seed=8)


def assert_same(ours: Any, exact: Any, *, tolerance: float = 1e-12) -> None:
    pairs = list(zip(tree_leaves(ours), tree_leaves(exact), strict=True))
    assert pairs
    for mine, theirs in pairs:
        assert theirs.norm() > 0, "the case proves nothing"
        assert (mine - theirs).norm() <= tolerance * theirs.norm()


def rows(norm: Norm) -> Norm:
    return lambda x, weight=None, bias=None: norm(x, (M,), weight, bias)


def scalar(norm: Norm) -> Norm:
    """A sum that no derivative up to the fourth makes vanish."""
    return lambda x, weight=None, bias=None: norm(x, (M,), weight, bias).sin().square().sum()


def variant_of(norm: Norm, variant: str) -> tuple[Norm, list[Tensor]]:
    """A function of x and those parameters that are present, and its inputs, with gradients."""
    weighted, biased = VARIANTS[variant]

    def bound(x: Tensor, *parameters: Tensor) -> Tensor:
        given = iter(parameters)
        weight = next(given) if weighted else None
        return norm(x, (M,), weight, next(given) if biased else None)

    inputs = [X, *([WEIGHT] if weighted else []), *([BIAS] if biased else [])]
    return bound, [t.clone().requires_grad_() for t in inputs]


@each_variant
def test_gradcheck_in_every_mode(variant: str) -> None:
    bound, inputs = variant_of(layer_norm, variant)
    assert gradcheck(
        bound,
        inputs,
        atol=1e-8,
        rtol=1e-6,
        check_batched_grad=True,
        check_forward_ad=True,
        check_batched_forward_grad=True,
    )
    assert gradgradcheck(
        bound, inputs, atol=1e-8, rtol=1e-6, check_batched_grad=True, check_fwd_over_rev=True
    )


@each_variant
def test_reverse_derivatives_of_four_orders(variant: str) -> None:
    found = []
    for norm in (layer_norm, plain):
        bound, inputs = variant_of(norm, variant)
        value, orders = bound(*inputs).sin().square().sum(), []
        for _ in range(4):
            grads = torch.autograd.grad(value, inputs, create_graph=True)
            orders.append(torch.cat([g.flatten() for g in grads]))
            value = orders[-1].square().sum()
        found.append(orders)
    assert_same(*found)


@each_variant
def test_forward_derivatives_of_three_orders(variant: str) -> None:
    def orders(norm: Norm) -> list[Tensor]:
        bound, inputs = variant_of(norm, variant)
        primals = tuple(t.detach() for t in inputs)
        tangents = (DX, DWEIGHT, DBIAS)[: len(primals)]
        value, found = bound, []
        for _ in range(3):
            value = tangent_of(value, tangents)
            found.append(value(*primals))
        return found

    assert_same(orders(layer_norm), orders(plain))


def tangent_of(value: Norm, tangents: tuple[Tensor, ...]) -> Norm:
    return lambda *primals: jvp(value, primals, tangents)[1]


@each_variant
def test_closed_forms_are_the_derivatives_of_the_formula(variant: str) -> None:
    def derived(
        x: Tensor, row: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        return formula.forward(x, weight, bias, len(row), 1e-5)

    found = []
    for norm in (layer_norm, derived):
        bound, inputs = variant_of(norm, variant)
        grads = torch.autograd.grad(bound(*inputs), inputs, DX)
        primals = tuple(t.detach() for t in inputs)
        found.append((grads, jvp(bound, primals, (DX, DWEIGHT, DBIAS)[: len(primals)])))
    assert_same(*found, tolerance=1e-13)


def make_dual(primal: Tensor, tangent: Tensor) -> Tensor:
    return forward_ad.make_dual(primal, tangent)  # type: ignore[no-any-return, no-untyped-call]


def tangent_in(dual: Tensor) -> Tensor:
    return forward_ad.unpack_dual(dual).tangent  # type: ignore[no-any-return, no-untyped-call]


def dual(norm: Norm) -> Tensor:
    with forward_ad.dual_level():
        return tangent_in(rows(norm)(make_dual(X, DX), WEIGHT, BIAS))


def dual_of_backward(norm: Norm) -> Tensor:
    """The gradient of an ordinary forward pass, differentiated along dL/dY."""
    x = X.clone().requires_grad_()
    y = rows(norm)(x, WEIGHT)
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, make_dual(DX, XS[0]))
        return tangent_in(dx)


def batch_of_gradients(norm: Norm) -> tuple[Tensor, ...]:
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    return torch.autograd.grad(rows(norm)(x, weight), (x, weight), XS, is_grads_batched=True)


def transformed_backward(
    batch: Callable[[Callable[..., Any], Tensor], Any], needs: tuple[int, ...] = (0, 1, 2)
) -> Computation:
    """Gradients of an ordinary forward pass for several dL/dY at once, and their own gradients."""

    def compute(norm: Norm) -> list[Tensor]:
        inputs = [t.clone().requires_grad_(i in needs) for i, t in enumerate(ARGUMENTS)]
        wanted = [inputs[i] for i in needs]
        y = rows(norm)(*inputs)
        dys = XS.clone().requires_grad_()
        pull = partial(torch.autograd.grad, y, wanted, retain_graph=True, create_graph=True)
        grads = batch(pull, dys)
        value = sum(g.sin().sum() for g in grads)
        more = torch.autograd.grad(value, [*wanted, dys], allow_unused=True)
        return [*grads, *(g for g in more if g is not None)]

    return compute


def in_autograd(pull: Callable[..., Any], dys: Tensor) -> Any:
    return pull(dys, is_grads_batched=True)


def in_vmap(pull: Callable[..., Any], dys: Tensor) -> Any:
    return vmap(pull)(dys)


def batch_of_duals(norm: Norm) -> Tensor:
    """A batch of gradients differentiated along dL/dY, where the batch hides the tangents."""
    x = X.clone().requires_grad_()
    y = rows(norm)(x, WEIGHT)
    with forward_ad.dual_level():
        (dx,) = torch.autograd.grad(y, x, make_dual(XS, XS.cos()), is_grads_batched=True)
        return tangent_in(dx)


def gradient_of_vmap(norm: Norm) -> tuple[Tensor, ...]:
    x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    y = vmap(rows(norm), (0, None))(x, weight)
    return torch.autograd.grad(y.sin().sum(), (x, weight))


ALL = (0, 1, 2)
ARGUMENTS = (X, WEIGHT, BIAS)
TRANSFORMS: dict[str, Computation] = {
    "vmap_x": lambda f: vmap(rows(f), (0, None, None))(XS, WEIGHT, BIAS),
    "vmap_last": lambda f: vmap(rows(f), (2, None, None))(XS.movedim(0, 2), WEIGHT, BIAS),
    "vmap_parameters": lambda f: vmap(rows(f), (None, 0, 0))(X, WEIGHTS, BIASES),
    "vmap_weight": lambda f: vmap(rows(f), (None, 0, None))(X, WEIGHTS, BIAS),
    "vmap_all": lambda f: vmap(rows(f))(XS, WEIGHTS, BIASES),
    "vmap_nested": lambda f: vmap(vmap(rows(f), (0, None)), (0, 0))(XS, WEIGHTS),
    "grad": lambda f: grad(scalar(f), ALL)(*ARGUMENTS),
    "per_sample_gradients": lambda f: vmap(grad(scalar(f), ALL), (0, None, None))(*ARGUMENTS),
    "vmap_grad_parameters": lambda f: vmap(grad(scalar(f), ALL), (None, 0, 0))(X, WEIGHTS, BIASES),
    "vmap_of_vjp": lambda f: vmap(vjp(rows(f), *ARGUMENTS)[1])(XS),
    "vjp_under_vmap": lambda f: vmap(lambda x: vjp(rows(f), x)[1](DX[0]))(X),
    "jacrev": lambda f: jacrev(rows(f), ALL)(*ARGUMENTS),
    "jacfwd": lambda f: jacfwd(rows(f), ALL)(*ARGUMENTS),
    "hessian": lambda f: hessian(scalar(f), ALL)(*ARGUMENTS),
    "jacrev_of_jacrev": lambda f: jacrev(jacrev(scalar(f), ALL), ALL)(*ARGUMENTS),
    "jacrev_of_jacfwd": lambda f: jacrev(jacfwd(scalar(f), ALL), ALL)(*ARGUMENTS),
    "jacfwd_of_jacfwd": lambda f: jacfwd(jacfwd(scalar(f), ALL), ALL)(*ARGUMENTS),
    "jacfwd_thrice": lambda f: jacfwd(jacfwd(jacfwd(scalar(f))))(X[0], WEIGHT),
    "jacfwd_jacrev_jacfwd": lambda f: jacfwd(jacrev(jacfwd(scalar(f))))(X[0], WEIGHT),
    "linearize": lambda f: linearize(rows(f), *ARGUMENTS)[1](DX, DWEIGHT, DBIAS),
    "jvp": lambda f: jvp(rows(f), ARGUMENTS, (DX, DWEIGHT, DBIAS)),
    "jvp_of_weight": lambda f: jvp(lambda w: rows(f)(X, w, BIAS), (WEIGHT,), (DWEIGHT,)),
    "jvp_of_grad": lambda f: jvp(grad(scalar(f)), (X,), (DX,)),
    "grad_of_jvp": lambda f: grad(lambda x: jvp(scalar(f), (x,), (DX,))[1])(X),
    "jvp_of_vmap": lambda f: jvp(vmap(rows(f)), (X,), (DX,)),
    "vmap_of_jvp": lambda f: vmap(tangent_of(rows(f), (DX[0],)))(X),
    "jvp_vmap_jvp": lambda f: jvp(
        vmap(tangent_of(rows(f), (DX[0], DWEIGHT)), (0, None)), (X, WEIGHT), (DX, DWEIGHT)
    ),
    "dual": dual,
    "dual_of_backward": dual_of_backward,
    "batch_of_gradients": batch_of_gradients,
    "batch_of_duals": batch_of_duals,
    "batched_backward": transformed_backward(in_autograd),
    "batched_backward_of_bias": transformed_backward(in_autograd, (2,)),
    "batched_backward_of_weight": transformed_backward(in_autograd, (1,)),
    "vmapped_backward": transformed_backward(in_vmap),
    "vmapped_backward_of_bias": transformed_backward(in_vmap, (2,)),
    "functionalize": lambda f: functionalize(rows(f))(*ARGUMENTS),
    "gradient_of_vmap": gradient_of_vmap,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transform(transform: str) -> None:
    compute = TRANSFORMS[transform]
    assert_same(compute(layer_norm), compute(plain), tolerance=1e-11)


def test_missing_private_names_of_pytorch_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_seam, "forward_ad", None)
    monkeypatch.delattr(torch._C._functorch, "get_interpreter_stack")
    for compute in (batch_of_gradients, TRANSFORMS["jacfwd_of_jacfwd"]):
        assert_same(compute(layer_norm), compute(plain), tolerance=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transforms_keep_half_types(dtype: torch.dtype) -> None:
    x, weight = X.to(dtype), WEIGHT.float()
    y, dy, *_ = jvp(rows(layer_norm), (x, weight), (DX.to(dtype), DWEIGHT.float()))
    loss = grad(lambda x, w: rows(layer_norm)(x, w).float().square().sum(), (0, 1))
    dx, dweight = vmap(loss, (0, None))(x, weight)
    assert (y.dtype, dy.dtype, dx.dtype, dweight.dtype) == (dtype, dtype, dtype, torch.float32)
    exact = jvp(rows(plain), (x.double(), weight.double()), (DX.to(dtype).double(), DWEIGHT))
    assert_same((y.double(), dy.double()), exact, tolerance=5e-3)


def penalised(norm: Norm) -> Norm:
    """A loss with a gradient in it, and a second term that would hide the loss of the first."""

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = norm(x, (M,), weight, bias)
        (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return dx.square().sum() + y.sin().sum()

    return loss


def leaves() -> list[Tensor]:
    return [t.clone().requires_grad_() for t in ARGUMENTS]


def test_gradient_penalty_and_a_second_term() -> None:
    inputs = leaves()
    ours, exact = (torch.autograd.grad(penalised(f)(*inputs), inputs) for f in (layer_norm, plain))
    assert_same(ours, exact)


# Compilers.


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def assert_compiles(compute: Computation, backend: str, dynamic: bool | None = None) -> None:
    """Values and gradients of the compiled whole equal those of the plain formula."""
    compiled = torch.compile(compute(layer_norm), fullgraph=True, backend=backend, dynamic=dynamic)
    found = []
    for run in (compiled, compute(plain)):
        inputs = leaves()
        outputs = tree_leaves(run(*inputs))
        loss = sum(output.sin().sum() for output in outputs)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        found.append((outputs, [g for g in grads if g is not None]))
    assert_same(*found, tolerance=1e-11)


COMPILED: dict[str, Computation] = {
    "affine": rows,
    "no_bias": lambda f: lambda x, w, b: rows(f)(x, w),
    "no_weight": lambda f: lambda x, w, b: rows(f)(x, None, b),
    "none": lambda f: lambda x, w, b: rows(f)(x),
    "shared_parameter": lambda f: lambda x, w, b: rows(f)(x, w, w),
    "frozen_x": lambda f: lambda x, w, b: rows(f)(x.detach(), w, b),
    "vmap": lambda f: vmap(rows(f), (0, None, None)),
    "grad": lambda f: grad(scalar(f), ALL),
    "per_sample_gradients": lambda f: vmap(grad(scalar(f), ALL), (0, None, None)),
    "jvp": lambda f: lambda x, w, b: jvp(lambda x: rows(f)(x, w, b), (x,), (DX,)),
    "jacrev": lambda f: jacrev(rows(f)),
    "hessian": lambda f: hessian(scalar(f)),
    "checkpoint": lambda f: lambda *a: checkpoint(rows(f), *a, use_reentrant=False),
}


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "case", mark_slow(COMPILED, except_for={"affine", "none", "per_sample_gradients"})
)
def test_compiles_in_one_graph(case: str) -> None:
    assert_compiles(COMPILED[case], "aot_eager")


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize(
    "case", mark_slow(["affine", "none", "per_sample_gradients"], except_for=["affine"])
)
def test_compiles_with_dynamic_shapes(case: str) -> None:
    assert_compiles(COMPILED[case], "aot_eager", dynamic=True)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", ["affine", "none", "per_sample_gradients", "hessian"])
def test_compiles_with_inductor(case: str, dynamic: bool) -> None:
    assert_compiles(COMPILED[case], "inductor", dynamic)


@pytest.mark.usefixtures("fresh_compiler")
def test_gradients_inside_a_compiled_function_have_gradients() -> None:
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        assert_compiles(penalised, "aot_eager")


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_compiler_sees_the_kernel_on_the_cpu_and_elementary_operations_elsewhere(
    device: str,
) -> None:
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def compiled(function: Norm) -> Norm:
        return torch.compile(function, backend=backend, fullgraph=True)

    # PyTorch 2.11 takes every compilation for an export, which is elementary everywhere.
    exporting = bool(compiled(lambda x: x * torch.compiler.is_exporting())(torch.ones(())))
    with torch.no_grad():
        compiled(rows(layer_norm))(X.to(device))
    opaque = any("custom_ops" in name for name in names)
    assert opaque == (device == "cpu" and not exporting)


@pytest.mark.parametrize("strict", [False, True])
def test_exports_to_elementary_operations(strict: bool) -> None:
    module = nn.Sequential(LayerNorm(M), nn.Linear(M, 2)).double()
    batch = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(module, (X,), dynamic_shapes=batch, strict=strict)
    decomposed = exported.run_decompositions()
    calls = [str(n.target) for n in decomposed.graph.nodes if n.op == "call_function"]
    assert all(call.startswith(("aten.", "<built-in")) for call in calls)
    x = normal(9, M)
    for program in (exported, decomposed):
        assert_same(program.module()(x), module(x))
    gradients = []
    for trained in (exported.module(), module):
        parameters = list(trained.parameters())
        gradients.append(torch.autograd.grad(trained(x).sin().sum(), parameters))
    assert_same(*gradients)


def test_traces_with_symbolic_shapes() -> None:
    def values_and_gradients(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        y = layer_norm(x, x.shape[1:], weight)
        return y, *torch.autograd.grad(y.sin().sum(), x)

    graph = make_fx(values_and_gradients, tracing_mode="symbolic")(X, WEIGHT)
    x, weight = normal(9, 5), normal(5, seed=1)
    assert_same(graph(x, weight), values_and_gradients(x, weight))


def tokens(x: Tensor) -> Tensor:
    """The three ways to write a shape, for TorchScript to compile."""
    return layer_norm(x, 6) * layer_norm(x, (4, 6)) * layer_norm(x, [6], eps=1e-3)


def assert_elementary(graph: Any) -> None:
    """A graph of TorchScript can be loaded where this project is not."""
    torch._C._jit_pass_inline(graph)
    kinds = {node.kind() for node in graph.nodes()}
    assert "aten::rsqrt_" in kinds
    assert all(kind.startswith(("aten::", "prim::")) for kind in kinds)
    assert "prim::PythonOp" not in kinds


def assert_same_module(ours: nn.Module, module: nn.Module, x: Tensor) -> None:
    found = []
    for run in (ours, module):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        found.append((y, *torch.autograd.grad(y.sin().sum(), [leaf, *run.parameters()])))
    assert_same(*found)


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:The TorchScript type system")
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"elementwise_affine": False}])
@pytest.mark.parametrize("row", [6, (4, 6)])
@pytest.mark.parametrize("record", ["script", "trace", "fx", "script_of_fx"])
def test_recorded_modules_are_the_same(
    record: str, row: int | tuple[int, ...], settings: dict[str, bool]
) -> None:
    module = nn.Sequential(LayerNorm(row, **settings), nn.ELU()).double()
    recorded: Any = module
    if "fx" in record:
        recorded = torch.fx.symbolic_trace(module)
        (node,) = (n for n in recorded.graph.nodes if n.op == "call_function")
        assert node.target is layer_norm
    if "script" in record:
        recorded = torch.jit.script(recorded)
    if record == "trace":
        recorded = torch.jit.trace(module, X)  # type: ignore[no-untyped-call]
    if record != "fx":
        assert_elementary(recorded.graph.copy())
    assert_same_module(recorded, module, X if row != 6 else normal(9, M))


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_scripted_functions() -> None:
    assert_same(torch.jit.script(tokens)(X), tokens(X))
    scripted = torch.jit.script(layer_norm)
    assert_same(scripted(X, 6, None, BIAS), layer_norm(X, 6, None, BIAS))
    half = X.to(torch.bfloat16)
    assert_same(scripted(half, [M], WEIGHT), layer_norm(half, M, WEIGHT), tolerance=1e-2)
    for arguments, message in (
        ((X, 5), "x to end in normalized_shape"),
        ((X, []), "x to end in normalized_shape, of one number at least"),
        ((X, 6, WEIGHT[:1]), "weight and bias of shape normalized_shape"),
        ((X, 6, None, X), "weight and bias of shape normalized_shape"),
        ((X.long(), 6), r"x of a floating dtype: call x.float\(\)"),
    ):
        with pytest.raises(torch.jit.Error, match=message):
            scripted(*arguments)


@pytest.mark.parametrize("proxied", ["x", "weight", "all"])
def test_symbolic_traces_record_one_node(proxied: str) -> None:
    calls: dict[str, tuple[Norm, tuple[Tensor, ...]]] = {
        "x": (lambda x: layer_norm(x, M, eps=1e-3), (X,)),
        "weight": (lambda w: layer_norm(X, M, weight=w), (WEIGHT,)),
        "all": (lambda x, w, b: layer_norm(x, (M,), w, bias=b), ARGUMENTS),
    }
    function, inputs = calls[proxied]
    graph = torch.fx.symbolic_trace(function)
    assert len([n for n in graph.graph.nodes if n.op == "call_function"]) == 1
    for copy in (graph, pickle.loads(pickle.dumps(graph)) if proxied == "all" else graph):
        assert_same(copy(*inputs), function(*inputs))


@pytest.mark.parametrize("place", ["meta", "fake"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shapes_are_known_without_data(place: str, dtype: torch.dtype) -> None:
    fake = FakeTensorMode()
    like = (lambda t: t.to("meta")) if place == "meta" else fake.from_tensor
    inputs = [like(t.to(dtype)).requires_grad_() for t in (XS.transpose(0, 1), WEIGHT, BIAS)]
    y = rows(layer_norm)(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y))
    for found, expected in zip((y, *grads), (inputs[0], *inputs), strict=True):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert found.device == expected.device
    assert y.is_contiguous()


# Modules and memory.


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    found: list[list[Tensor | None]] = []
    for norm in (layer_norm, plain):
        inputs = leaves()
        y = checkpoint(rows(norm), *inputs, use_reentrant=reentrant)
        torch.autograd.backward(y.sin().sum())
        found.append([t.grad for t in inputs])
    assert_same(*found)


def test_module_under_functional_call() -> None:
    module = LayerNorm(M, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(module, parameters, (x,)).sin().square().sum()  # type: ignore[no-any-return]

    parameters = {"weight": WEIGHT, "bias": BIAS}
    ours = vmap(grad(loss), (None, 0))(parameters, X)
    exact = vmap(grad(scalar(plain), ALL), (0, None, None))(*ARGUMENTS)
    assert_same([ours["weight"], ours["bias"]], exact[1:])


@pytest.mark.parametrize("weight", [WEIGHT.float(), None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_keep_the_rules_of_the_dispatcher(
    weight: Tensor | None, dtype: torch.dtype
) -> None:
    ops, x = torch.ops.custom_ops, XS.to(dtype)
    torch.library.opcheck(ops.layer_norm_forward.default, (x, weight, weight, 1, 1e-5))
    _, statistics = ops.layer_norm_forward(x, weight, weight, 1, 1e-5)
    for needs in ([True, True, True], [True, False, False], [False, True, True]):
        arguments = (x.exp(), x, weight, statistics, 1, needs)
        torch.library.opcheck(ops.layer_norm_backward.default, arguments)
