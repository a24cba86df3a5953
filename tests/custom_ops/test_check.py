# ruff: noqa: RUF001 - faults are named in the letters of their formulas
"""The checker finds nothing in right operators, and names what is wrong in others."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import custom_ops
from custom_ops import check as checker
from custom_ops import exercises, numpy_ops
from custom_ops.faults import EXERCISES


def results(**classes: type) -> dict[tuple[str, str], str]:
    module: Any = SimpleNamespace(**classes)
    return {(title, quantity): wrong for title, quantity, wrong in checker.check(module)}


def test_the_operators_of_this_project_are_right() -> None:
    layers = {name: getattr(numpy_ops, name) for name in ("Linear", "ELU", "Softmax")}
    layers["Linear"] = type("Linear", (numpy_ops.Linear,), {"__init__": in_float64})
    functions = (
        "LinearFunction",
        "ELUFunction",
        "SoftmaxFunction",
        "CrossEntropyFunction",
        "Conv2dFunction",
    )
    found = results(
        **layers,
        CrossEntropyModule=numpy_ops.CrossEntropy,
        **{name: getattr(custom_ops, name) for name in functions},
        CustomLayerNormManualFunction=Rows,
    )
    assert set(found.values()) == {""}
    assert len(found) == 4 + 4 + 3 + 2 + 4 + 4 + 3 + 3 + 5 + 5


def in_float64(self: numpy_ops.Linear, inputs: int, outputs: int) -> None:
    numpy_ops.Linear.__init__(self, inputs, outputs, dtype=float)


class Rows(torch.autograd.Function):
    """Layer normalisation by autograd, with the arguments of the course's."""

    @staticmethod
    def forward(ctx: Any, x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        ctx.save_for_backward(x, gamma, beta)
        ctx.eps = eps
        return torch.nn.functional.layer_norm(x, x.shape[1:], gamma, beta, eps)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            x, gamma, beta = inputs
            y = torch.nn.functional.layer_norm(x, dout.shape[1:], gamma, beta, ctx.eps)
        return (*torch.autograd.grad(y, inputs, dout), None)


class Linear:
    """Of a student."""

    dx, dw, db = "dout @ w", "dout.T @ x", "dout.sum(0)"
    y = "x @ w.T + b"

    def __init__(self, *sizes: int) -> None:
        self.params: dict[str, Any] = {"weight": None, "bias": None}
        self.grads: dict[str, Any] = {}

    def given(self) -> dict[str, Any]:
        w, b = self.params["weight"], self.params["bias"]
        return {"np": np, "x": self.x, "w": w, "b": b}

    def forward(self, x: Any) -> Any:
        self.x = x
        return eval(self.y, self.given())

    def backward(self, dout: Any) -> Any:
        known = {**self.given(), "dout": dout, "S": len(dout)}
        self.grads = {"weight": eval(self.dw, known), "bias": eval(self.db, known)}
        return eval(self.dx, known)


class Softmax:
    """Of a student."""

    y, dx = "e / e.sum(1, keepdims=True)", "y * (dout - (dout * y).sum(1, keepdims=True))"

    def forward(self, x: Any) -> Any:
        self.x = x
        self.out = eval(self.y, {"np": np, "x": x, "e": np.exp(x - x.max(1)[:, None])})
        return self.out

    def backward(self, dout: Any) -> Any:
        return eval(self.dx, {"np": np, "x": self.x, "y": self.out, "dout": dout})


class ELU(Softmax):
    """Of a student."""

    y, dx = "np.where(x > 0, x, np.exp(x) - 1)", "dout * np.where(x > 0, 1, np.exp(x))"


class CrossEntropy:
    """Of a student."""

    y, dx = "-(t * np.log(p)).sum() / S", "-t / p / S"

    def forward(self, p: Any, t: Any) -> Any:
        return eval(self.y, {"np": np, "p": p, "t": t, "S": len(p)})

    def backward(self, p: Any, t: Any) -> Any:
        return eval(self.dx, {"np": np, "p": p, "t": t, "S": len(p)})


class LayerNorm(Linear):
    """Of a student."""

    y = "w * xh + b"
    dx = "r * (g - g.mean(1, keepdims=True) - xh * (g * xh).mean(1, keepdims=True))"
    dw = "(dout * xh).sum(0)"

    def __init__(self, features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def given(self) -> dict[str, Any]:
        x = self.x
        r = 1 / np.sqrt(x.var(1, keepdims=True) + self.eps)
        return {**super().given(), "eps": self.eps, "r": r, "xh": r * (x - x.mean(1)[:, None])}

    def backward(self, dout: Any) -> Any:
        self.dx = type(self).dx.replace("g", "(dout * w)")
        return super().backward(dout)


def with_fault(kind: type, **formulas: str) -> type:
    return type(kind.__name__, (kind,), formulas)


@pytest.mark.parametrize("kind", [Linear, Softmax, ELU, CrossEntropy, LayerNorm])
def test_right_ones_of_a_student_are_right(kind: type) -> None:
    found = results(**{kind.__name__: kind})
    assert found
    assert set(found.values()) == {""}


@pytest.mark.parametrize(
    ("kind", "formulas", "quantity", "message"),
    [
        (Linear, {"dw": "(dout.T @ x).T"}, "dL/dW", "transposed: (4, 3), and should be (3, 4)"),
        (Linear, {"dw": "dout.T @ x / S"}, "dL/dW", "a mean for a sum"),
        (Linear, {"db": "dout.mean(0)"}, "dL/db", "a mean for a sum"),
        (Linear, {"db": "dout.sum(1)"}, "dL/db", "over the outputs, not over the samples"),
        (Linear, {"dx": "-dout @ w"}, "dL/dX", "its sign is wrong"),
        (Linear, {"dx": "0 * x"}, "dL/dX", "zero everywhere"),
        (Linear, {"y": "x @ w.T"}, "forward", "b is not added"),
        (Linear, {"dx": "dout"}, "dL/dX", "the shape (5, 3), and should have (5, 4)"),
        (ELU, {"dx": "dout * np.exp(x)"}, "dL/dX", "for X > 0, too"),
        (ELU, {"dx": "dout * (x > 0)"}, "dL/dX", "e^X is missing where X < 0"),
        (ELU, {"y": "np.where(x > 0, x, np.exp(x))"}, "forward", "the - 1 is missing"),
        (Softmax, {"dx": "dout * y * (1 - y)"}, "dL/dX", "only the diagonal"),
        (Softmax, {"dx": "dout * y"}, "dL/dX", "the sum Σ_j dL/dY_j Y_j is missing"),
        (Softmax, {"dx": "y * (dout - (dout * y).sum(0))"}, "dL/dX", "over the samples"),
        (
            Softmax,
            {"y": "np.exp(x) / np.exp(x).sum(0)"},
            "forward",
            "over the samples, not over the classes",
        ),
        (CrossEntropy, {"dx": "-t / p"}, "dL/dX", "not divided by the number of samples"),
        (CrossEntropy, {"dx": "t / p / S"}, "dL/dX", "its sign is wrong"),
        (CrossEntropy, {"dx": "(p - t) / S"}, "dL/dX", "softmax and cross-entropy together"),
        (CrossEntropy, {"y": "-(t * np.log(p)).sum()"}, "forward", "a sum for a mean"),
        (LayerNorm, {"dx": "r * g"}, "dL/dX", "taken as constants"),
        (LayerNorm, {"dx": "r * (g - g.mean(1, keepdims=True))"}, "dL/dX", "σ depends on X"),
        (
            LayerNorm,
            {"dx": "r * (g - xh * (g * xh).mean(1, keepdims=True))"},
            "dL/dX",
            "the term mean(dX̂) is missing",
        ),
        (LayerNorm, {"dw": "dout.sum(0)"}, "dL/dW", "the factor X̂ is missing"),
        (LayerNorm, {"dw": "(dout * xh).mean(0)"}, "dL/dW", "a mean for a sum"),
        (
            LayerNorm,
            {"y": "w * (x - x.mean(1)[:, None]) / x.std(1)[:, None] + b"},
            "forward",
            "ε is",
        ),
        (LayerNorm, {"y": "xh + b"}, "forward", "γ is missing"),
        (ELU, {"dx": "dout * x"}, "dL/dX", "values differ, by up to"),
        (ELU, {"dx": "dout * np.nan"}, "dL/dX", "20 of 20 values are not finite"),
        (ELU, {"dx": "'no array'"}, "dL/dX", "it is a str, not an array of shape (5, 4)"),
        (
            ELU,
            {"dx": "undefined"},
            "backward",
            "it raises NameError: name 'undefined' is not defined",
        ),
    ],
)
def test_a_fault_is_named(
    kind: type, formulas: dict[str, str], quantity: str, message: str
) -> None:
    found = results(**{kind.__name__: with_fault(kind, **formulas)})
    wrong = {key: text for (_, key), text in found.items() if text}
    assert wrong.keys() == {quantity} or quantity == "forward"  # gradients then follow
    assert message in wrong[quantity]


_VARIANCE = "(x**2).mean(1)[:, None] - x.mean(1)[:, None] ** 2"


@pytest.mark.parametrize(
    ("kind", "formulas", "message"),
    [
        (Softmax, {"y": "np.exp(x) / np.exp(x).sum(1)[:, None]"}, "subtract the maximum"),
        (ELU, {"y": "(x > 0) * x + (x <= 0) * (np.exp(x) - 1)"}, "only where X < 0"),
        (ELU, {"dx": "dout * ((x > 0) + (x <= 0) * np.exp(x))"}, "only where X < 0"),
        (
            LayerNorm,
            {"y": f"w * (x - x.mean(1)[:, None]) / np.sqrt({_VARIANCE} + eps) + b"},
            "take mean((X - μ)²)",
        ),
    ],
)
def test_what_fails_only_for_large_numbers_is_named(
    kind: type, formulas: dict[str, str], message: str
) -> None:
    found = results(**{kind.__name__: with_fault(kind, **formulas)})
    (wrong,) = (text for (_, key), text in found.items() if key == "large X")
    assert message in wrong
    assert sum(map(bool, found.values())) == 1


class CrossEntropyIgnores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, p: Any, t: Any) -> Any:
        ctx.save_for_backward(p, t)
        return -(t * p.log()).sum() / len(p)

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        p, t = ctx.saved_tensors
        return -t / p / len(p), None


class ELUOfOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, alpha: float) -> Any:
        y = torch.where(x > 0, x, alpha * torch.expm1(x))
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        x, y = ctx.saved_tensors
        return dout * torch.where(x > 0, 1.0, y + 1), None


class LinearChanges(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, b: Any) -> Any:
        ctx.save_for_backward(x, w)
        return x @ w.T + b

    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        x, w = ctx.saved_tensors
        found = dout @ w, dout.T @ x, dout.sum(0)
        dout *= 2
        return found


class LinearForgets(LinearChanges):
    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        x, w = ctx.saved_tensors
        return dout @ w, dout.T @ x


class LinearOfRows(LinearChanges):
    @staticmethod
    def backward(ctx: Any, dout: Any) -> Any:
        x, w = ctx.saved_tensors
        return dout @ w, dout.T @ x, dout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: [*found], "returns a list: return a tuple"),
        (lambda found: tuple(gradient.numpy() for gradient in found), "returns a ndarray"),
        (lambda found: (*found, found[0]), "returns 4 values for 3 arguments"),
        (lambda found: (*found, None), ""),
        (lambda found: (*found[:2], found[2][None]), ""),
    ],
)
def test_a_function_that_pytorch_refuses_is_not_right(change: Any, message: str) -> None:
    class Changed(LinearChanges):
        @staticmethod
        def backward(ctx: Any, dout: Any) -> Any:
            x, w = ctx.saved_tensors
            return change((dout @ w, dout.T @ x, dout.sum(0)))

    wrong = "".join(results(LinearFunction=Changed).values())
    assert message in wrong and bool(message) == bool(wrong)


@pytest.mark.parametrize(
    ("name", "kind", "quantity", "message"),
    [
        ("CrossEntropyFunction", CrossEntropyIgnores, "dL/dY = 2", "dL/dY is not a factor"),
        ("ELUFunction", ELUOfOne, "α = 2", "α is not in it everywhere"),
        ("LinearFunction", LinearChanges, "backward", "changes an array that it is given"),
        ("LinearFunction", LinearForgets, "backward", "backward returns 2 values for 3 arguments"),
        ("LinearFunction", LinearOfRows, "dL/db", "it is not summed over the samples"),
    ],
)
def test_what_pytorch_takes_without_a_word_is_named(
    name: str, kind: type, quantity: str, message: str
) -> None:
    wrong = {key: text for (_, key), text in results(**{name: kind}).items() if text}
    assert wrong.keys() == {quantity}
    assert message in wrong[quantity]


def test_a_layer_without_known_parameters_is_told_where_to_keep_them() -> None:
    class Hidden(Linear):
        def __init__(self, *_: int) -> None:
            self.w = 0

    (wrong,) = results(Linear=Hidden).values()
    assert "keep them in params['weight'] and params['bias']" in wrong


def test_a_maximum_over_all_rows_is_not_right() -> None:
    kind = with_fault(Softmax, y="np.exp(x - x.max()) / np.exp(x - x.max()).sum(1)[:, None]")
    assert "the maximum of each row" in results(Softmax=kind)["Softmax", "large X"]


def test_a_layer_that_trains_itself_spoils_no_other() -> None:
    class Trains(Linear):
        def backward(self, dout: Any) -> Any:
            found = super().backward(dout)
            self.params["weight"] -= 0.1 * self.grads["weight"]
            return found

    found = results(LinearModule=Trains, LinearFunction=custom_ops.LinearFunction)
    wrong = {key: text for key, text in found.items() if text}
    assert [*wrong.values()] == ["backward changes the parameters: leave that to an optimiser"]


def test_a_layer_may_take_alpha_and_keep_its_weights_transposed() -> None:
    class OfAlpha(ELU):
        def __init__(self, alpha: float) -> None:
            self.y = f"np.where(x > 0, x, {alpha} * (np.exp(x) - 1))"
            self.dx = f"dout * np.where(x > 0, 1, {alpha} * np.exp(x))"

    assert {*results(ELUModule=OfAlpha).values()} == {""}

    class Transposed:
        def __init__(self, inputs: int, outputs: int) -> None:
            self.w, self.b = np.zeros((inputs, outputs)), np.zeros(outputs)
            self.params = {"weight": self.w, "bias": self.b}

        def forward(self, x: Any) -> Any:
            self.x = x
            return x @ self.w + self.b

        def backward(self, dout: Any) -> Any:
            self.grads = {"weight": self.x.T @ dout, "bias": dout.sum(0)}
            return dout @ self.w.T

    assert {*results(Linear=Transposed).values()} == {""}

    class OfName(ELU):
        def __init__(self, name: str = "elu") -> None:
            pass

    assert {*results(ELUModule=OfName).values()} == {""}


def test_a_class_that_changes_its_input_is_not_right() -> None:
    class Forward(Softmax):
        def forward(self, x: Any) -> Any:
            x -= x.max(1)[:, None]
            return super().forward(x)

    class Backward(Softmax):
        def backward(self, dout: Any) -> Any:
            dout *= 2
            return super().backward(dout / 2)

    assert [*results(Softmax=Forward).values()] == [
        "forward changes an array that it is given: work on a copy"
    ]
    wrong = results(Softmax=Backward)["Softmax", "backward"]
    assert wrong.startswith("backward changes an array")


def test_every_known_fault_is_one_and_is_told_apart() -> None:
    for exercise in EXERCISES:
        for quantity, text, wrong in exercise.faults:
            assert checker.verdict(exercise, quantity, wrong) == text


def test_the_exercises_are_to_be_filled_in() -> None:
    found = results(**vars(exercises))
    assert set(found.values()) == {"not filled in yet"}
    assert len(found) == 8


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (-1, "its sign is wrong"),
        (0, "it is zero everywhere"),
        (1 / 5, "it is divided by the number of samples once too often (a mean for a sum)"),
        (5, "it is not divided by the number of samples (a sum for a mean)"),
        (-5, "its sign is wrong, and it is not divided by the number of samples"),
        (2, "it is 2 times what it should be"),
        (1.5, "it is 1.5 times what it should be"),
        (1 + 1e-9, ""),
        (1 + 1e-5, "it is 1.00001 times what it should be"),
    ],
)
def test_a_constant_factor_is_named(factor: float, message: str) -> None:
    linear = EXERCISES[0]
    assert checker.verdict(linear, "dL/dW", factor * linear.expected["dL/dW"]) == message


def test_the_worst_of_other_values_is_shown() -> None:
    elu = EXERCISES[1]
    found = elu.expected["dL/dX"].copy()
    found[0, 0] += 1e-4
    found[1, 2] -= 0.5
    should = elu.expected["dL/dX"][1, 2]
    assert checker.verdict(elu, "dL/dX", found) == (
        f"2 of 20 values differ, by up to 0.5: at (1, 2) it is {should - 0.5:.6g}, and should be "
        f"{should:.6g}"
    )


def test_an_operator_is_called_by_its_name_and_by_that_of_its_class() -> None:
    titles = {title for title, _ in results(ELU=ELU, ELUModule=ELU)}
    assert titles == {"ELU", "ELU (ELUModule)"}


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns its status and what it printed."""

    def command(*args: str) -> tuple[int, str]:
        status = 0
        try:
            checker.main([*args])
        except SystemExit as stop:
            status = int(stop.code or 0)
        printed = capsys.readouterr()
        return status, printed.out + printed.err

    return command


def test_a_file_is_written_and_checked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my_ops.py"
    hint = f"fill in what raises, then python -m custom_ops.check {path}"
    assert run("--write", str(path)) == (0, f"wrote {path}: {hint}\n")
    assert run("--write", str(path)) == (2, f"error: {path} exists: name another file\n")
    status, printed = run(str(path))
    assert status == 1
    assert printed.startswith("Linear (LinearModule)\n  all      not filled in yet\nELU (")
    assert printed.endswith("\n0 of 8 right\n")
    text = path.read_text().replace(
        '"""Returns Y in the shape of X."""\n        raise NotImplementedError',
        '"""."""\n        self.x = x\n        return np.where(x > 0, x, np.expm1(x))',
    )
    text = text.replace(
        '"""Returns dL/dX in the shape of X."""\n        raise NotImplementedError',
        '"""."""\n        return dout * np.where(self.x > 0, 1, np.exp(self.x))',
    )
    path.write_text(text)
    status, printed = run(str(path))
    assert "ELU (ELUModule)\n  forward  right\n  dL/dX    right\n" in printed
    assert printed.endswith("\n3 of 10 right\n")
    path.write_text("from custom_ops import ELUFunction\n")
    assert run(str(path)) == (
        0,
        "ELU (ELUFunction)\n  forward  right\n  dL/dX    right\n  large X  right\n"
        "  α = 2    right\n4 of 4 right\n",
    )


def test_a_place_that_can_not_be_written_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nothing" / "my_ops.py"
    assert run("--write", str(path)) == (
        2,
        f"error: {path} can't be written: No such file or directory\n",
    )


def test_what_a_file_imports_from_torch_is_not_checked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("from custom_ops import ELUFunction as Mine\n")
    path = tmp_path / "ops.py"
    path.write_text("from torch.nn import Linear\nfrom helper import Mine as ELUFunction\n")
    status, printed = run(str(path))
    assert (status, "Linear" in printed) == (0, False)


def test_a_misspelt_class_is_named(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ops.py"
    path.write_text("class ELUModul:\n    pass\nclass Other:\n    pass\nclass ELU:\n    pass\n")
    status, printed = run(str(path))
    assert status == 1
    assert "ELUModul is not checked: did you mean ELUModule?" in printed
    assert "Other" not in printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist: python -m custom_ops.check --write"),
        ("x = 1", "has no class of a known name: Conv, Conv2d,"),
        ("import nothing_there", "can't be run: ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_can_not_be_checked_is_one_line(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ops.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as failed:
        checker.main([str(path)])
    assert failed.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


class Exits(ELU):
    """Of a student."""

    def forward(self, x: Any) -> Any:
        raise SystemExit(0)


class Coloured(ELU):
    """Of a student."""

    def forward(self, x: Any) -> Any:
        raise RuntimeError("a\x1b[31m\nred")


class Torch(ELU):
    """Of a student."""

    def forward(self, x: Any) -> Any:
        return torch.tensor(super().forward(x), requires_grad=True)


class Reuses(ELU):
    """Of a student."""

    def backward(self, dout: Any) -> Any:
        self.out[...] = super().backward(dout)
        return self.out


class Nothing(ELU):
    """Of a student."""

    def forward(self, x: Any) -> Any:
        super().forward(x)


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        (Exits, "ELU", {"": "it raises SystemExit: 0"}),
        (Coloured, "ELU", {"": "it raises RuntimeError: a?[31m red"}),
        (Torch, "ELU", {}),
        (Reuses, "ELU", {}),
        (Nothing, "ELU", {"forward": "nothing is returned"}),
    ],
)
def test_odd_code_gets_a_verdict(kind: type, name: str, wrong: dict[str, str]) -> None:
    found = results(**{name: kind})
    assert {key: text for (_, key), text in found.items() if text} == wrong


def test_warnings_of_numpy_are_no_noise(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ops.py"
    path.write_text(
        "import numpy as np\nclass SoftMaxModule:\n"
        "    def forward(self, x):\n        return np.full(x.shape, 1e308) * 10\n"
        "    def backward(self, dout):\n        return np.log(dout * 0)\n"
    )
    status, printed = run(str(path))
    assert status == 1
    assert "15 of 15 values are not finite" in printed
    assert "Warning" not in printed


def test_a_file_that_exits_is_not_right(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ops.py"
    path.write_text("raise SystemExit(0)")
    assert run(str(path)) == (2, f"error: {path} can't be run: SystemExit: 0 "
                              "(ops.py, line 1: raise SystemExit(0))\n")  # fmt: skip


def test_an_error_names_its_innermost_line_in_the_file(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ops.py"
    path.write_text(
        "import numpy as np\n"
        "def add(x):\n    return np.add(x, np.zeros(999))\n"
        "class ELU:\n    def forward(self, x):\n        return add(x)\n"
        "class Linear:\n    pass\n"  # fails when it is called, in no line of the file
    )
    status, out = run(str(path))
    assert status == 1
    assert re.search(r"it raises ValueError: .*\(ops.py, line 3: return np.add", out)
    assert "it raises TypeError: Linear() takes no arguments\n" in out
