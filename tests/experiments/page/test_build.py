import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from experiments.page import build

PNG = b"\x89PNG\r\n\x1a\nrest"


def packed(page: str, name: str) -> str:
    (text,) = re.findall(rf'id="packed-{name}">([A-Za-z0-9+/=]*)<', page)
    return gzip.decompress(base64.b64decode(text)).decode()


def test_the_policy_allows_only_the_scripts_of_the_page() -> None:
    page = build.static_page({"runs": []}, "<p>table</p>")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    (own,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    for script in (own, packed(page, "plotly"), packed(page, "datatables")):
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"&#x27;sha256-{digest}&#x27;" in policy
    assert "default-src &#x27;none&#x27;" in policy
    assert "connect-src" not in policy
    assert "unsafe-eval" not in policy
    assert "connect-src 'self'" in build.policy(live=True)


def test_the_page_holds_everything() -> None:
    page = build.static_page({"runs": [], "name": "</script><!--script-->"}, "<p>table</p>")
    assert json.loads(packed(page, "data"))["name"] == "</script><!--script-->"
    assert "<noscript><p>table</p></noscript>" in page
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]
    assert not re.findall(r"<!--(?!script-->)\w+-->", page)


def test_a_picture_is_a_small_png_in_the_folder_itself(tmp_path: Path) -> None:
    real, text, link, large = (tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png"))
    real.write_bytes(PNG)
    text.write_text("secret")
    link.symlink_to(real)
    with large.open("wb") as file:
        file.write(PNG)
        file.truncate(build.LARGEST_PICTURE + 1)
    assert build.picture(real) == PNG
    for path in (text, link, large, tmp_path, tmp_path / "none.png"):
        assert build.picture(path) is None


def test_pictures_are_embedded_until_the_file_is_large(tmp_path: Path) -> None:
    size = build.LARGEST_PICTURE
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        content = PNG if name == "c" else PNG.ljust(size, b"0")
        (tmp_path / name / "mistakes_test.png").write_bytes(content)
    found = build.embedded_pictures({name: tmp_path / name for name in ("a", "b", "c", "none")})
    assert found.keys() == {"a", "c"}
    assert found["c"]["mistakes_test.png"].startswith("data:image/png;base64,iVBOR")


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "find_spec", lambda name: None)
    build.plotly.cache_clear()
    with pytest.raises(build.PageError, match="run: pip install plotly"):
        build.plotly()


def test_another_form_of_datatables_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_of_package", lambda *_: "var a = 1; export { a as Other };")
    build.datatables.cache_clear()
    with pytest.raises(build.PageError, match="pip install itables=="):
        build.datatables()
    monkeypatch.undo()
    build.datatables.cache_clear()
