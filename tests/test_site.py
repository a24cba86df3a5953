"""The documentation site: links, formulas, navigation, and that it needs no other server."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import start
from docs import hooks
from tests.conftest import PROJECT
from tests.test_architecture import MODULES, PACKAGES


def test_links_out_of_docs_lead_to_pages_of_the_site() -> None:
    text = (
        "[a](../cli.py) [b](layer_norm.md#x) [c](https://x.org/cli.py) [d](#here) ![e](cnn.png) "
        "[f](../README.md#data) [g](../configs/trainer) [h](gone.md)"
    )
    assert hooks.rewritten(text, PROJECT / "docs/page.md", "page.md") == (
        "[a](source/cli.py.file.md) [b](layer_norm.md#x) [c](https://x.org/cli.py) [d](#here) "
        "![e](cnn.png) [f](index.md#data) [g](source/configs/trainer.file.md) [h](gone.md)"
    )
    assert hooks.rewritten("[a](docs/cnn.png)", PROJECT / "README.md", "index.md") == "[a](cnn.png)"
    assert hooks.rewritten("[a](../../cli.py)", PROJECT / "docs/how-to/p.md", "how-to/p.md") == (
        "[a](../source/cli.py.file.md)"
    )


def test_a_page_of_the_site_shows_a_file() -> None:
    for path in ("README.md", "cli.py", "docs/comparing.md", "configs/trainer"):
        source = PROJECT / path
        assert hooks.source_of(hooks.page_of(source)) == source
    shown = hooks.text_of(PROJECT / "cli.py")
    assert shown.startswith("# cli.py\n\n~~~~python\n")
    assert "- [`ddp.yaml`](trainer/ddp.yaml)" in hooks.text_of(PROJECT / "configs/trainer")
    listed = hooks.targets(hooks.text_of(PROJECT / "configs/trainer"), PROJECT / "configs/trainer")
    assert PROJECT / "configs/trainer/ddp.yaml" in listed


def test_formulas_and_footnotes_are_rewritten() -> None:
    page: Any = type("Page", (), {"file": type("File", (), {"src_uri": "reference/a.md"})})
    text = r'Muon [1]_. <p>.. [1] K. .. [2] L. <span class="arithmatex">\(a &lt; b\)</span>'
    shown = hooks.on_page_content(text, page, Any, Any)  # type: ignore[arg-type]
    assert shown.startswith("Muon [1]. <p>[1] K. <br>[2] L. <math")
    assert "arithmatex" not in shown


def test_every_page_is_in_the_navigation_and_every_module_in_the_reference() -> None:
    text = (PROJECT / "mkdocs.yml").read_text()
    named = re.findall(r"[\w/-]+\.md$", text, re.MULTILINE)
    pages = (path.relative_to(hooks.DOCS).as_posix() for path in hooks.DOCS.rglob("*.md"))
    assert sorted(named) == sorted(pages)
    rooms = {path.name for path in (PROJECT / "experiments").iterdir() if path.is_dir()}
    reference = {path.stem: path.read_text() for path in (hooks.DOCS / "reference").glob("*.md")}
    assert reference.keys() == rooms - {"__pycache__"} | PACKAGES
    shown = {name for text in reference.values() for name in re.findall(r"^::: (\S+)", text, re.M)}
    modules = [path.relative_to(PROJECT).with_suffix("").parts for path in MODULES]
    assert {
        ".".join(parts)
        for parts in modules
        if parts[-1] != "__init__" and not {".".join(parts), ".".join(parts[:2])} & shown
    } == set()


@pytest.mark.parametrize(("link", "status"), [("here.md", 0), ("gone.md", 1), ("../gone.py", 1)])
def test_lint_fails_for_a_link_that_leads_nowhere(link: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"[link]({link})")
    (tmp_path / "docs/here.md").write_text("Here")
    (tmp_path / "mkdocs.yml").write_text("site_name: Small\n")
    command = [sys.executable, "-m", *start.LINT[-1]]
    ended = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True)
    assert ended.returncode == status


@pytest.mark.slow
def test_the_site_loads_nothing_from_another_server(tmp_path: Path) -> None:
    command = [sys.executable, "-m", *start.LINT[-1], "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=PROJECT, check=True)
    pages = [*tmp_path.rglob("*.html")]
    assert len(pages) > 50
    loads = re.compile(
        r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//|<link[^>]* href="?https?://'
    )
    assert [page for page in pages if loads.search(page.read_text())] == []
