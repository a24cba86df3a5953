"""Which package may know which, and that everything public is documented, read from the code.

And that what is private to others, such as Lightning and PyTorch, is taken in one place alone.
"""

import ast
import enum
import functools
import importlib
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"custom_ops", "datamodules", "experiments", "lightning_modules"}
FORBIDDEN = {
    "custom_ops": PACKAGES - {"custom_ops"} | {"lightning", "pytorch_lightning", "torchmetrics"},
    "datamodules": {"lightning_modules", "experiments", "custom_ops"},
    "lightning_modules": {"datamodules", "experiments"},
    "experiments": set[str](),
}
MODULES = [
    path
    for package in sorted(PACKAGES)
    for path in sorted((ROOT / package).rglob("*.py"))
    if "__pycache__" not in path.parts
]
# Where private names of others may be used, each with a test of its own.
SEAMS = {
    "custom_ops/torch_seam.py",
    "experiments/lightning_seam.py",
    "experiments/command_line/parser_seam.py",
}
ELSEWHERE = [
    path
    for path in (*MODULES, ROOT / "cli.py", ROOT / "reproduce.py")
    if path.relative_to(ROOT).as_posix() not in SEAMS
]
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller"}
# Rooms of experiments, the lowest floor first, each with the rooms that it may import from.
_BASE = {"errors", "texts", "identity"}
ROOMS: dict[str, set[str]] = {
    **{room: set[str]() for room in ("texts", "identity", "lightning_seam")},
    "errors": {"texts"},
    "process": {"errors"},
    "records": _BASE,
    "checkpoints": {"errors", "identity", "lightning_seam", "records"},
    "analysis": {"texts", "identity", "records"},
    "sources": {"texts", "identity", "records"},
    "monitoring": {*_BASE, "lightning_seam", "records", "checkpoints", "analysis"},
    "session": {"errors", "identity", "lightning_seam", "process", "records", "checkpoints"}
    | {"analysis", "monitoring"},
    "command_line": {*_BASE, "lightning_seam", "process", "records", "checkpoints", "monitoring"}
    | {"session"},
    "reproduction": {"errors", "texts", "identity", "records", "analysis"},
    "page": {"texts", "identity", "records", "analysis"},
    "compare": {*_BASE, "records", "analysis", "sources", "command_line", "page"},
    "export_runs": {*_BASE, "records", "sources", "command_line"},
    "tuning": {"errors", "texts", "identity", "process", "records", "analysis", "session"}
    | {"command_line", "compare"},
    "wandb_report": set[str](),
    "inference": {"errors", "texts", "records", "checkpoints"},
    "fitting": {"errors", "identity", "records", "command_line"},
    "export": {"errors", "texts", "records", "checkpoints", "monitoring", "command_line"}
    | {"inference"},
    "completion": {"errors", "identity", "monitoring", "command_line"},
    "__init__": {"errors", "records", "monitoring", "fitting", "inference"},
}
MOST_FILES = 10  # in a folder
LONGEST_CLASS = 200  # lines
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def imported(code: str) -> set[str]:
    """The top-level packages that code imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found.add(str(node.module).split(".")[0])
    return found


def undocumented(node: Documented, name: str) -> list[str]:
    """Public classes, functions and methods without a docstring."""
    bare = [name] if ast.get_docstring(node) is None else []
    for child in node.body if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else []:
        if isinstance(child, Documented) and not child.name.startswith("_"):
            bare += undocumented(child, f"{name}.{child.name}")
    return bare


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore; two at both ends are Python's."""
    return name.startswith("_") and not name.endswith("__") and name != "_"


def own_names(code: str) -> set[str]:
    """The private names that the classes of code define, as methods or as attributes."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef):
            found |= {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
            fields = [child for child in node.body if isinstance(child, ast.Assign | ast.AnnAssign)]
            names = [name for field in fields for name in ast.walk(field)]
            found |= {name.id for name in names if isinstance(name, ast.Name)}
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found |= {node.attr} if is_self(node.value) else set()
    return {name for name in found if is_private(name)}


@functools.cache
def names_of_project() -> set[str]:
    """The private names that the classes of all modules define."""
    return {name for module in MODULES for name in own_names(module.read_text())}


def is_self(node: ast.expr) -> bool:
    """Whether an expression is ``self``, ``cls`` or ``super()``."""
    name = node.func if isinstance(node, ast.Call) else node
    return isinstance(name, ast.Name) and name.id in {"self", "cls", "super"}


def private_names_of_others(code: str, of_project: set[str]) -> list[str]:
    """Where code uses private names of others: attributes, imports, names as text.

    Args:
        code: of a module. Its own classes' private attributes are its own.
        of_project: private names that classes of this project define, for `self`.
    """
    own, tree = own_names(code), ast.parse(code)
    return [
        f"line {node.lineno}: {name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt)
        for name in names_of_others(node, own, own | of_project)
    ]


def names_of_others(node: ast.AST, own: set[str], of_self: set[str]) -> Iterator[str]:
    """The private names of others in one node of code."""
    found: list[str] = []
    if isinstance(node, ast.Attribute):
        known = of_self if is_self(node.value) else own
        found = [node.attr] if node.attr not in known else []
    elif isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        found = [str(node.module), *(alias.name for alias in node.names)]
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
        found = [text for text in texts if isinstance(text, str) and called in BY_NAME]
    yield from (name for name in found if any(map(is_private, name.split("."))))


def overridden(kind: type) -> set[str]:
    """The private methods of classes of others that a class of this project overrides."""
    theirs = [base for base in kind.__mro__[1:] if base.__module__.split(".")[0] not in PACKAGES]
    known = {name for base in theirs for name in vars(base) if is_private(name)}
    if issubclass(kind, enum.Enum):  # Python itself writes them into each
        return set()
    # A class among them is made by a metaclass, as by that of `torch.autograd.Function`.
    own = {name for name, value in vars(kind).items() if not inspect.isclass(value)}
    return {name for name in own & known if callable(getattr(kind, name))}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_look_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed_above = {"cli", "tests", "benchmarks", "start"}
    assert not imported(path.read_text()) & (FORBIDDEN[package] | allowed_above)


def room_of(name: str) -> str:
    """The room of a module of experiments, ``experiments.records.runs``."""
    return [*name.split("."), "__init__"][1]


def rooms_used(code: str) -> set[str]:
    """The rooms of experiments that code imports from, wherever in it."""
    found = set[str]()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module == "experiments":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("experiments."):
            found.add(room_of(str(node.module)))
        elif isinstance(node, ast.Import):
            found |= {room_of(a.name) for a in node.names if a.name.startswith("experiments.")}
    return found


def test_rooms_look_down() -> None:
    floors = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(floors.index(other) < floors.index(room) for other in below), room
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in (path for path in MODULES if name_of(path).startswith("experiments/")):
        room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
        found[room] |= rooms_used(path.read_text()) - {room}
    assert found == ROOMS  # an arrow that nobody needs is not allowed either


def test_no_folder_and_no_class_is_large() -> None:
    folders = Counter(path.parent for path in MODULES)
    assert {name_of(folder) for folder, files in folders.items() if files > MOST_FILES} == set()
    classes = [
        (f"{name_of(path)}: {node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in (*MODULES, ROOT / "cli.py", ROOT / "reproduce.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert {name: lines for name, lines in classes if lines > LONGEST_CLASS} == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_public_is_documented(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text()), name_of(path)) == []


@pytest.mark.parametrize("path", ELSEWHERE, ids=name_of)
def test_private_names_of_others_stay_in_the_seams(path: Path) -> None:
    assert private_names_of_others(path.read_text(), names_of_project()) == []


@pytest.mark.parametrize("path", ELSEWHERE, ids=name_of)
def test_private_methods_of_others_are_overridden_in_the_seams(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if name.endswith("triton_kernel"):
        pytest.importorskip("triton")
    kinds = inspect.getmembers(importlib.import_module(name), inspect.isclass)
    found = {known: overridden(kind) for known, kind in kinds if kind.__module__ == name}
    assert {kind: names for kind, names in found.items() if names} == {}


def test_each_seam_is_needed() -> None:
    for seam in SEAMS:
        assert private_names_of_others((ROOT / seam).read_text(), set()), seam


def test_private_names_are_seen() -> None:
    code = """
import torch._C
from torch._x import y
from a import _b
class Own:
    _field = 1
    def _method(self): self._value = self._field + self._of_base + self._inherited
    def other(self, x): return x._value, x._method(), x._theirs, super()._hidden(), x.__dict__
getattr(f, "_g")
torch._foreach_add(1)
x._y = setattr(a.b, "c._d", 2)
_private_function(_.e)
"""
    found = private_names_of_others(code, {"_of_base"})
    seen = {"torch._C", "torch._x", "_b", "_inherited", "_theirs", "_hidden", "_g", "_foreach_add"}
    assert {text.partition(": ")[2] for text in found} == seen | {"_y", "c._d"}
    theirs: Any = type("Theirs", (), {"_private": len, "__module__": "torch"})
    ours: Any = type("Ours", (theirs,), {"_private": len, "_more": len})
    assert (overridden(ours), overridden(theirs)) == ({"_private"}, set())


def test_these_checks_see_what_they_look_for() -> None:
    assert imported("def f():\n import a.b\n from c.d import e") == {"a", "c"}
    code = '"Doc."\nclass A:\n def f(self): ...\n def _g(self): ...\n\ndef h(): "Doc."'
    assert undocumented(ast.parse(code), "m") == ["m.A", "m.A.f"]
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == PACKAGES
