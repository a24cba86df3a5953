"""What MkDocs calls while it builds the site: links, formulas and footnotes.

Pages are written to be read in the repository, where a link may lead to any file. A site has only
the files of ``docs/``. So each other file that a page links to becomes a page of the site, and the
link is rewritten. Nothing here needs a network.
"""

import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Pages of docs/ that show a file from outside of it.
SHOWN = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
_PAGES = {name: page for page, name in SHOWN.items()}
# An added page is source/cli.py.file.md: a folder of the site must not look like a Python file.
_ADDED, _ENDING = "source/", ".file.md"
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n"
_LANGUAGES = {".cfg": "ini", ".cpp": "cpp", ".py": "python", ".yaml": "yaml", ".yml": "yaml"}
# The target of a link or a picture, unless it is on another server or on the same page.
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])[^)#\s]+")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
# Of docstrings, in reStructuredText: "CIFAR-10 [1]_" and ".. [1] A. Krizhevsky".
_FOOTNOTES = ((r"<p>\.\. (?=\[\d+\])", "<p>"), (r"\.\. (?=\[\d+\])", "<br>"), (r"(?<=\[\d\])_", ""))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for each file outside of docs/ that a page links to.

    Args:
        files: those of docs/.
        config: of the site.

    Returns:
        The same, with the added ones.
    """
    todo = [source_of(file.src_uri) for file in files.documentation_pages()]
    seen = {*todo}
    while todo:
        source = todo.pop()
        for target in sorted(targets(text_of(source), source) - seen):
            seen.add(target)
            if (page := page_of(target)).startswith(_ADDED):
                todo.append(target)
                files.append(File.generated(config, page, content=_NOT_SEARCHED))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Takes the text of the file that a page shows, and rewrites the links in it.

    Args:
        markdown: the page's own text.
        page: which one.
        config: of the site.
        files: of the site.

    Returns:
        The text to render.
    """
    uri = page.file.src_uri
    source = source_of(uri)
    own = source == DOCS / uri
    return rewritten(markdown if own else text_of(source), source, uri)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Writes formulas as MathML, which browsers show without a script, and plain footnotes.

    Args:
        html: the rendered page.
        page: which one.
        config: of the site.
        files: of the site.

    Returns:
        The page to show.
    """
    if page.file.src_uri.startswith("reference/"):
        for written, shown in _FOOTNOTES:
            html = re.sub(written, shown, html)
    return _FORMULA.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    formula: str = convert(
        html.unescape(found[3]), display="inline" if found[2] == "(" else "block"
    )
    return formula


def source_of(uri: str) -> Path:
    """The file of the repository that a page of the site shows."""
    if uri.startswith(_ADDED):
        return ROOT / uri.removeprefix(_ADDED).removesuffix(_ENDING)
    return ROOT / SHOWN[uri] if uri in SHOWN else DOCS / uri


def page_of(target: Path) -> str:
    """The page of the site, or the file of docs/, that shows a file of the repository."""
    name = target.relative_to(ROOT).as_posix()
    if target.is_relative_to(DOCS):
        return target.relative_to(DOCS).as_posix()
    return _PAGES.get(name, f"{_ADDED}{name}{_ENDING}")


def text_of(source: Path) -> str:
    """A file as Markdown: a page as it is, code in a block, and of a folder a list of its files."""
    name = source.relative_to(ROOT).as_posix()
    if source.suffix == ".md":
        return source.read_text(encoding="utf-8")
    if source.is_dir():
        names = sorted(path.name for path in source.iterdir() if path.suffix in _LANGUAGES)
        listed = "\n".join(f"- [`{entry}`]({source.name}/{entry})" for entry in names)
        return f"# {name}/\n\n{listed}\n"
    code = source.read_text(encoding="utf-8").rstrip("\n")
    return f"# {name}\n\n~~~~{_LANGUAGES.get(source.suffix, 'text')}\n{code}\n~~~~\n"


def targets(text: str, source: Path) -> set[Path]:
    """The files and folders of the repository that a text links to.

    Args:
        text: Markdown.
        source: the file that the links are relative to.
    """
    found = (_target(link, source) for link in _LINK.findall(text))
    return {target for target in found if target is not None}


def rewritten(text: str, source: Path, uri: str) -> str:
    """The text of a file, with links that lead from its page to other pages.

    Args:
        text: Markdown.
        source: the file that the links are relative to.
        uri: the page of the site that shows it.
    """

    def rewrite(found: re.Match[str]) -> str:
        target = _target(found[0], source)
        if target is None:  # the strict build says so
            return found[0]
        return Path(os.path.relpath(page_of(target), Path(uri).parent)).as_posix()

    return _LINK.sub(rewrite, text)


def _target(link: str, source: Path) -> Path | None:
    target = Path(os.path.normpath(source.parent / link))
    is_shown = target.exists() and target.is_relative_to(ROOT) and target != DOCS / "hooks.py"
    return target if is_shown else None
