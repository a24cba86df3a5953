"""The notebooks run from top to bottom, and what they call right is right, what wrong wrong."""

import ast
import contextlib
import functools
import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pytest
import torch

import custom_ops
from custom_ops import numpy_ops
from custom_ops.layer_norm import formula
from notebooks import gradients
from tests.conftest import PROJECT, mark_slow

FOLDER = PROJECT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
DERIVATIONS = [name for name in NOTEBOOKS if name[0].isdigit()]
STEPS = gradients.STEPS
Array = npt.NDArray[Any]


def cells(name: str, kind: str) -> list[str]:
    content = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


@dataclass
class Played:
    """A notebook that has run."""

    namespace: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    checked: dict[str, tuple[Array, Array]] = field(default_factory=dict)  # by hand, measured
    figures: int = 0

    def check(self, loss: Any, x: Array, by_hand: dict[str, Array]) -> None:
        h = 0.01 if x.dtype == np.float32 else 1e-5
        measured = gradients.central_differences(loss, x, h)
        self.checked |= {title: (gradient, measured) for title, gradient in by_hand.items()}


@contextlib.contextmanager
def as_in_jupyter(place: str) -> Iterator[None]:
    """The notebooks' folder to import from, a folder to write to, and nothing shown."""
    temporary, tempfile.tempdir = tempfile.tempdir, place
    sys.path.insert(0, str(FOLDER))
    try:
        with contextlib.chdir(place), mpl.rc_context():
            plt.switch_backend("Agg")
            yield
    finally:
        plt.close("all")
        sys.path.remove(str(FOLDER))
        tempfile.tempdir = temporary


@functools.cache
def played(name: str, rendered: bool = False) -> Played:
    """Runs the cells of a notebook in order; with fewer step sizes, as nobody looks.

    Args:
        name: its file.
        rendered: whether figures are laid out and painted, which takes most of the time.
    """
    notebook = Played()
    with tempfile.TemporaryDirectory() as place, as_in_jupyter(place):
        module: Any = importlib.import_module("gradients")
        draw = module.check

        def check(loss: Any, x: Array, by_hand: Any, steps: gradients.Array = STEPS) -> None:
            notebook.check(loss, x, by_hand)
            draw(loss, x, by_hand, steps[::8])

        module.check = check
        try:
            for number, source in enumerate(cells(name, "code")):
                code = compile(source, f"{name}, code cell {number}", "exec")
                exec(code, notebook.namespace)
                notebook.figures += len(plt.get_fignums())
                for figure in map(plt.figure, plt.get_fignums() if rendered else []):
                    figure.canvas.draw()
                plt.close("all")
        finally:
            module.check = draw
    return notebook


@pytest.mark.parametrize("name", mark_slow(NOTEBOOKS, DERIVATIONS))
def test_runs_from_top_to_bottom(name: str) -> None:
    assert played(name).figures >= 3


@pytest.mark.slow
@pytest.mark.parametrize("name", DERIVATIONS)
def test_every_figure_can_be_painted(name: str) -> None:
    assert played(name, rendered=True).figures >= 5


# ---- the files -----------------------------------------------------------------------------------


def test_every_section_of_the_report_has_one() -> None:
    assert len(DERIVATIONS) == 4
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({name})" in table for name in NOTEBOOKS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_valid_and_without_outputs(name: str) -> None:
    text = (FOLDER / name).read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    assert content.keys() == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    ids = [cell["id"] for cell in content["cells"]]
    assert len({*ids}) == len(ids)
    assert all(identity.isalnum() and len(identity) <= 64 for identity in ids)
    for cell in content["cells"]:
        common = {"cell_type", "id", "metadata", "source"}
        assert cell["metadata"] == {}
        assert cell["source"] == "".join(cell["source"]).splitlines(keepends=True) != []
        if cell["cell_type"] == "code":
            assert cell.keys() == {*common, "outputs", "execution_count"}
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
        else:
            assert (cell["cell_type"], cell.keys()) == ("markdown", common)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_plain_python_that_names_no_place(name: str) -> None:
    for source in cells(name, "code"):
        ast.parse(source)  # no magics: they are no Python
        assert "/home/" not in source
        assert "/tmp" not in source


@pytest.mark.parametrize("name", DERIVATIONS)
def test_ends_with_the_exercises(name: str) -> None:
    assert "python -m custom_ops.check --write my_ops.py" in cells(name, "markdown")[-1]


# ---- the gradients -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DERIVATIONS)
def test_right_ones_are_measured_and_wrong_ones_are_not(name: str) -> None:
    checked = played(name).checked
    for title, (by_hand, measured) in checked.items():
        error = gradients.error(by_hand, measured)
        if title.startswith("wrong"):
            assert error > 0.05, title
        else:
            assert error < (1e-2 if by_hand.dtype == np.float32 else 1e-8), title
    wrong = sum(title.startswith("wrong") for title in checked)
    assert 3 <= wrong < len(checked)


RNG = np.random.default_rng(7)
X, W, B, G = (RNG.normal(size=shape) for shape in ((4, 6), (3, 6), (3,), (6,)))
DY, DX = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 6))
T = np.eye(6)[[5, 0, 3, 3]]
IMAGES, KERNEL, DIMAGES = (
    RNG.normal(size=shape) for shape in ((2, 3, 6, 7), (4, 3, 3, 2), (2, 4, 2, 3))
)


def by_layer(layer: Any, dout: Array, x: Array) -> Array:
    layer.forward(x)
    gradient: Array = layer.backward(dout)
    return gradient


def linear(of: dict[str, Any]) -> tuple[Any, Any]:
    theirs = numpy_ops.Linear(6, 3, dtype=float)
    theirs.params["weight"], theirs.params["bias"] = W, B
    gradient = by_layer(theirs, DY, X)
    return of["linear_backward"](DY, X, W), (gradient, theirs.grad_weight, theirs.grad_bias)


def softmax(of: dict[str, Any]) -> tuple[Any, Any]:
    y = of["softmax"](X)
    return [of["softmax_backward"](DX, y)], [by_layer(numpy_ops.Softmax(), DX, X)]


def losses(of: dict[str, Any]) -> tuple[Any, Any]:
    p = of["softmax"](X)
    ours = of["cross_entropy_backward"](p, T), of["softmax_cross_entropy_backward"](X, T)
    both = numpy_ops.SoftmaxCrossEntropy()
    return ours, (numpy_ops.CrossEntropy().backward(p, T), both.backward(X, T))


def activations(of: dict[str, Any]) -> tuple[Any, Any]:
    ours = of["elu_backward"](DX, X), of["tanh_backward"](DX, np.tanh(X))
    return ours, [by_layer(layer, DX, X) for layer in (numpy_ops.ELU(), numpy_ops.Tanh())]


def layer_norm(of: dict[str, Any]) -> tuple[Any, Any]:
    x, g, dout = map(torch.from_numpy, (X, G, DX))
    x_hat, rstd = formula.standardise(x, 1, of["EPS"])
    dx, dg = formula.grad_input(dout, x_hat, rstd, g, 1), formula.grad_weight(dout, x_hat, 1)
    return of["layer_norm_backward"](DX, X, G), (dx, dg, formula.grad_bias(dout, 1))


def convolution(of: dict[str, Any]) -> tuple[Any, Any]:
    theirs = gradients.by_function(
        functools.partial(custom_ops.conv2d, stride=2), DIMAGES, IMAGES, KERNEL, np.zeros(4)
    )
    return of["convolve_backward"](DIMAGES, IMAGES, KERNEL, stride=2), theirs


@pytest.mark.parametrize(
    ("name", "compared"),
    [
        ("1_numpy_mlp.ipynb", linear),
        ("1_numpy_mlp.ipynb", softmax),
        ("1_numpy_mlp.ipynb", losses),
        ("2_activations.ipynb", activations),
        ("3_layer_norm.ipynb", layer_norm),
        ("4_convolution.ipynb", convolution),
    ],
)
def test_gradients_are_those_of_the_project(
    name: str, compared: Callable[[dict[str, Any]], tuple[Any, Any]]
) -> None:
    """On inputs that the notebook has not seen."""
    ours, theirs = compared(played(name).namespace)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-10, atol=1e-12)


def test_layer_norm_without_a_term_is_another() -> None:
    of = played("3_layer_norm.ipynb").namespace
    x, g, dout = map(torch.from_numpy, (of["x"], of["gamma"], of["dout"]))
    right = formula.grad_input(dout, *formula.standardise(x, 1, of["EPS"]), g, 1).numpy()
    assert len(of["wrong"]) == 3
    assert all(gradients.error(wrong, right) > 0.1 for wrong in of["wrong"].values())


# ---- what draws them -----------------------------------------------------------------------------


def cube(x: Array) -> float:
    return float((x**3).sum())


def test_central_differences_are_off_by_the_third_derivative() -> None:
    x = np.array([[1.0, -2.0, 0.5]])
    before = x.copy()
    measured = gradients.central_differences(cube, x, 0.1)
    np.testing.assert_allclose(measured, 3 * x**2 + 0.1**2, rtol=1e-12)
    np.testing.assert_array_equal(x, before)


def test_the_best_step_is_the_cube_root_of_epsilon() -> None:
    x = np.linspace(0.5, 2, 10)
    measured = gradients.measure(cube, x)
    errors = [gradients.error(3 * x**2, other) for other in measured]
    assert 1e-7 < gradients.STEPS[int(np.argmin(errors))] < 1e-4
    assert min(errors) < 1e-9


def test_a_right_gradient_is_blue_and_a_wrong_one_red() -> None:
    plt.switch_backend("Agg")
    x = np.linspace(0.5, 2, 5)
    by_hand = {"right": 3 * x**2, "wrong": 2 * x**2}
    gradients.check(cube, x, by_hand, np.logspace(-7, -3, 5))
    axes = plt.gcf().axes
    colors = {ax.get_title(): ax.title.get_color() for ax in axes}
    assert (colors["right"], colors["wrong"]) == ("tab:blue", "tab:red")
    shown = [text.get_text() for ax in axes for text in ax.texts]
    assert shown == ["never below 0.3"]
    plt.close("all")
