"""Which package may know which, read from the imports, and that everything public is documented."""

import ast
from pathlib import Path

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


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_packages_look_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed_above = {"cli", "tests", "benchmarks", "start"}
    assert not imported(path.read_text()) & (FORBIDDEN[package] | allowed_above)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_public_is_documented(path: Path) -> None:
    assert undocumented(ast.parse(path.read_text()), name_of(path)) == []


def test_these_checks_see_what_they_look_for() -> None:
    assert imported("def f():\n import a.b\n from c.d import e") == {"a", "c"}
    code = '"Doc."\nclass A:\n def f(self): ...\n def _g(self): ...\n\ndef h(): "Doc."'
    assert undocumented(ast.parse(code), "m") == ["m.A", "m.A.f"]
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == PACKAGES
