import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from experiments.analysis import pages

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](http://evil/x.png)",
    "[x](javascript:alert(1))",
    "[x][y] [y]: http://evil",
    "<http://evil> http://evil www.evil.com @team",
    "`code` **bold** _em_ ~~gone~~ $x^2$",
    "a | b || c \\| d",
    "&lt;b&gt; &#60;i&#62;",
    "# heading",
    "> quote",
    "- item",
    "1. item",
    "--- | ---",
    "a\n\n<b>\n| x |",
    "\x1b]0;title\x07\u202e",
    "\" onmouseover='x' ]]> --> </td></table>",
]
FRAME = pd.DataFrame({text: [text] for text in HOSTILE})
BLOCKS: list[pages.Block] = [
    *map(pages.Heading, HOSTILE),
    *map(pages.Paragraph, HOSTILE),
    pages.Table(FRAME),
]


class Tags(HTMLParser):
    """Collects the tags and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Tags:
    found = Tags()
    found.feed(text)
    return found


def test_foreign_text_is_no_markup_of_a_page() -> None:
    page = pages.html_page(HOSTILE[0], BLOCKS)
    found = parsed(page)
    table = {"table", "thead", "tbody", "tr", "th", "td"}
    assert found.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p"} | table
    assert found.attributes == {"lang", "charset", "http-equiv", "content"}
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", page)
    for text in HOSTILE[:-3]:
        assert found.text.count(text) >= 3, text  # heading, paragraph, column, cell
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("text", "set_"),
    [
        ("<b>", "&lt;b>"),
        ("![x](http://e/x.png)", r"![x\](http\://e/x.png)"),
        ("[x][y] [y]: z", r"[x\][y] [y\]: z"),
        ("www.evil.com @team a@b", r"www\.evil.com \@team a@b"),
        ("`code` **b** _em_ ~~x~~ $x$", r"\`code\` \*\*b\*\* \_em\_ \~\~x\~\~ \$x\$"),
        (r"a | b \| c", r"a \| b \\\| c"),
        ("&lt; &#60; & AT&T", "&amp;lt; &amp;#60; & AT&T"),
        ("a\nb\x1b", r"a\\nb\\x1b"),
    ],
)
def test_foreign_text_is_no_markup_of_markdown(text: str, set_: str) -> None:
    table = pages.markdown_table(pd.DataFrame([[text]], columns=["x"]))
    assert re.sub(" +", " ", table.splitlines()[-1]) == f"| {set_} |"
    assert pages.markdown_table(pd.DataFrame([["x"]], columns=[text])).startswith(f"| {set_} ")
    for block in (pages.Heading(text), pages.Paragraph(text)):
        assert set_ in pages.markdown("t", [block], Path())


@pytest.mark.parametrize("text", ["# x", "> x", "- x", "+ x", "=== x", "1. x", "12) x", "[x]: y"])
def test_a_paragraph_begins_no_other_block(text: str) -> None:
    start = text.rstrip("x y:").removesuffix(" ")
    written = pages.markdown_blocks([pages.Paragraph(f"    {text}")])
    assert "\\" in written[: len(start) + 1]
    assert not written.startswith(" ")


def test_no_tag_is_left_for_a_markdown_that_knows_no_backslash() -> None:
    text = pages.markdown(HOSTILE[0], BLOCKS, Path())
    assert "<" not in text
    assert not re.search(r"(?<!\\)[`$]", text)


def test_this_project_s_own_code_is_code(tmp_path: Path) -> None:
    frame = pd.DataFrame([["`a|b` <i>", "`x`"]], columns=["claim", "note"])
    blocks: list[pages.Block] = [
        pages.Paragraph("see `a<b`", has_code=True),
        pages.Table(frame, ("claim",)),
    ]
    assert "<p>see <code>a&lt;b</code></p>" in pages.html_page("t", blocks)
    assert "<td><code>a|b</code> &lt;i&gt;</td><td>`x`</td>" in pages.html_page("t", blocks)
    text = pages.markdown("t", blocks, tmp_path)
    assert "see `a<b`" in text
    assert r"| `a\|b` &lt;i> | \`x\`  |" in text


def test_a_figure_s_link_and_caption_are_set(tmp_path: Path) -> None:
    picture = tmp_path / "a (b).png"
    picture.write_bytes(b"PNG")
    figure = pages.Figure(picture, 'of "a" <b>')
    assert "](a%20%28b%29.png)" in pages.markdown("t", [figure], tmp_path)
    assert 'alt="of &quot;a&quot; &lt;b&gt;"' in pages.html_page("t", [figure])


@pytest.mark.parametrize("name", ["mlp-lr_0.01", "a_b_c", "test/acc@2", "[0.9, 0.999]", "> 5 %"])
def test_plain_names_stay_readable(name: str) -> None:
    assert name in pages.markdown_table(pd.DataFrame({"name": [name]}))
