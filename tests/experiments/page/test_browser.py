"""The page in a real Chromium: no error, nothing fetched, no text of a run is code."""

import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.compare_page import chromium, make_runs
from experiments import compare
from experiments.analysis.significance import Difference, difference
from experiments.analysis.verdicts import better_if, outcomes
from experiments.page import server
from tests.experiments.page.test_server import PNG, Visit

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="no playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(chromium() is None, reason="no Chromium: apt-get install chromium")
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    "<svg onload=alert(3)",
    "<a href='https://evil.example/'>b</a><br>",
    "\"'><b>bold</b>&lt;i&gt;",
    "{{constructor}}${alert(4)}%{x}",
    "__proto__",
]
READY = "html[data-ready]"
# Chooses each option of a select whose words look like code, and waits for what it draws.
EACH = """async (id) => {
    const select = document.getElementById(id);
    const known = [...select.options].filter(({ text }) => /[<$_]/.test(text));
    for (const { value } of known.slice(-8)) {
        select.value = value;
        select.dispatchEvent(new Event('change'));
        await new Promise((done) => setTimeout(done, 25));
    }
}"""


class Tab:
    """A page of the browser, with what went wrong in it."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, **settings}
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.fetched: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.on("dialog", self._dismiss)
        self.page.on("request", lambda request: self.fetched.append(request.url))

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _dismiss(self, dialog: Any) -> None:
        self.errors.append("a dialog opened")
        dialog.dismiss()

    def show(self, view: str = "") -> Any:
        """Shows a view, as its link does."""
        self.page.evaluate(
            "(hash) => { history.replaceState(null, '', hash || location.pathname);"
            " comparePage.reread(); }",
            view,
        )
        return self.page

    def open(self, url: str) -> Any:
        self.page.goto(url)
        self.page.wait_for_selector(READY, state="attached")
        return self.page

    def names(self) -> list[str]:
        found: list[str] = self.page.locator("#table-box .open").all_text_contents()
        return found

    def column(self, title: str) -> list[str]:
        titles = [
            text.strip() for text in self.page.locator("#table-box thead th").all_text_contents()
        ]
        cells = self.page.locator(f"#table-box tbody td:nth-child({titles.index(title) + 1})")
        found: list[str] = cells.all_text_contents()
        return found

    def traces(self) -> list[dict[str, Any]]:
        """The traces of the chart: meta, and number of points."""
        self.page.wait_for_timeout(100)  # the chart follows the table
        found: list[dict[str, Any]] = self.page.evaluate(
            "document.getElementById('chart').data.map("
            "({meta, name, x, y, mode}) => ({meta, name, mode, x: [...x], y: [...y]}))"
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def empty_tab(browser: Any) -> Iterator[Tab]:
    """A tab without a page."""
    found = Tab(browser)
    yield found
    found.context.close()
    assert found.errors == []


def page_of(runs: Path, *options: str, name: str = "page.html") -> str:
    file = runs.parent / name
    compare.main([f"--runs_dir={runs}", "--format=html", f"--output={file}", *options])
    return file.as_uri()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "runs"
    make_runs(folder, 12, points=6, seeds=3)
    (folder / "made-0-s0/mistakes_test.png").write_bytes(PNG)
    return folder


@pytest.fixture(scope="module")
def url(runs: Path) -> str:
    return page_of(runs)


@pytest.fixture(scope="module")
def opened(browser: Any, url: str) -> Iterator[Tab]:
    found = Tab(browser)
    found.open(url)
    yield found
    found.context.close()


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    """The page of made runs, which the tests share, with the view that it opens with."""
    opened.show()
    yield opened
    assert opened.errors == []


def test_it_opens_offline_with_a_table_and_curves(tab: Tab) -> None:
    page = tab.page
    assert {*tab.names()} == {"made-0", "made-1", "made-2", "made-3"}
    assert tab.column("n") == ["3"] * 4
    assert len(tab.traces()) == 8  # a line and a band each
    assert "4 lines" in page.locator(".dt-info").text_content()
    assert [url for url in tab.fetched if not url.startswith(("file:", "data:", "blob:"))] == []


def test_it_sorts_searches_and_filters(tab: Tab) -> None:
    page = tab.page
    best = tab.names()
    page.locator("#table-box th", has_text="test/acc").click()
    page.wait_for_timeout(50)
    assert tab.names() == best[::-1]
    page.fill("#search", "made-2")
    assert tab.names() == ["made-2"]
    page.fill("#search", "")
    page.select_option("#filter-key", "test/acc")
    page.select_option("#filter-how", ">")
    second = float(tab.column("test/acc")[-2].split(" ")[0])
    page.fill("#filter-value", str(second - 0.00006))
    page.keyboard.press("Enter")
    assert tab.names() == best[:2][::-1]
    page.locator(".chip").click()
    assert len(tab.names()) == 4


def test_it_groups_by_any_key_and_by_run(tab: Tab) -> None:
    page = tab.page
    page.select_option("#group", label="norm")
    assert {*tab.names()} <= {"none", "batch", "layer"}
    assert "Lines mix runs that differ in" in page.text_content("#table-note")
    page.select_option("#group", "run")
    assert len(tab.names()) == 12


def test_nested_settings_are_columns_and_no_cell_is_high(tab: Tab) -> None:
    page = tab.page
    titles = page.locator("#table-box thead th").all_text_contents()
    assert {"lr", "norm", "EarlyStopping.patience"} <= {title.strip() for title in titles}
    assert "max_steps" not in titles
    assert not any("{" in text for text in page.locator("#table-box td").all_text_contents())
    heights = page.evaluate(
        "[...document.querySelectorAll('#table-box td')].map(td => td.clientHeight)"
    )
    assert max(heights) < 3 * 19
    page.locator("#columns summary").click()
    page.get_by_label("all settings").check()
    assert "max_steps" in "".join(page.locator("#table-box thead th").all_text_contents())
    page.keyboard.press("Escape")
    assert not page.get_by_label("all settings").is_visible()


def test_a_baseline_is_tested_with_holm_over_all_lines(tab: Tab) -> None:
    page = tab.page
    page.locator("button.pin").last.click()
    assert page.locator("tr.baseline .open").text_content() == tab.names()[-1]
    assert "corrected by Holm for the 3 tests of all lines" in page.text_content("#table-note")
    before = tab.column("difference to baseline")
    assert before[-1] == "(baseline)"
    assert all(TESTED.fullmatch(text) for text in before[:-1])
    raw = page.evaluate(
        "comparePage.lines().filter(({ outcome }) => outcome)"
        ".map(({ outcome }) => [outcome.difference.p, outcome.holm])"
    )
    assert min(adjusted / p for p, adjusted in raw) >= 1
    assert max(adjusted / p for p, adjusted in raw) == pytest.approx(3)
    cell = page.locator("#table-box td.tested span").first
    assert "corrected by Holm over 3 lines\nmargin ±0.01" in str(cell.get_attribute("title"))
    page.fill("#search", tab.names()[2])
    # a filter does not make a test weaker
    assert tab.column("difference to baseline") == [before[2]]


def begin_again(page: Any) -> None:
    """Forgets what a test did to the runs of the page, which other tests share."""
    page.reload()
    page.locator("button.pin").first.wait_for()


def test_lines_that_are_not_finished_or_mix_data_are_not_tested(tab: Tab) -> None:
    page = tab.page
    page.evaluate("model.lines('experiment')[0].runs[0].unfinished = true")
    page.locator("button.pin").last.click()
    assert sum("not finished: not tested" in t for t in tab.column("difference to baseline")) == 1
    page.evaluate(
        "model.runs().forEach((run, i) => { run.unfinished = false; run.data = `${i}`; })"
    )
    page.locator("button.pin").first.click()
    _, *others = tab.column("difference to baseline")
    assert all("on mixed data: not tested" in text for text in others)
    begin_again(page)


def test_another_metric_on_the_test_images_is_warned_of_too(tab: Tab) -> None:
    page = tab.page
    page.evaluate("Object.assign(model.data, { metric: 'val/acc', warnings: [] })")
    page.select_option("#group", "run")
    assert "12 lines are compared on the same test images" in page.text_content("#warnings")
    page.select_option("#metric", "train/seconds")
    assert not page.locator("#warnings").is_visible()
    begin_again(page)


def test_the_margin_is_shown_and_can_be_changed(tab: Tab, empty_tab: Tab) -> None:
    page = tab.page
    assert not page.locator("#margin").is_visible()
    page.locator("button.pin").first.click()
    assert page.input_value("#margin") == "0.01"
    page.fill("#margin", "0.9")
    page.keyboard.press("Enter")
    small = ("equivalent within ±0.9", "but by less than 0.9")
    assert all(any(map(text.count, small)) for text in tab.column("difference to baseline")[1:])
    assert "smaller than ±0.9" in page.text_content("#table-note")
    page.locator("button.open").last.click()
    rows = page.locator("dialog details", has_text="against the baseline").text_content()
    assert "margin±0.9" in rows and "TOST p by Holm over 3" in rows
    page.keyboard.press("Escape")
    again = empty_tab.open(page.url)
    assert again.input_value("#margin") == "0.9"
    assert empty_tab.column("difference to baseline") == tab.column("difference to baseline")
    for nonsense in ("-1", ""):
        page.fill("#margin", nonsense)
        page.keyboard.press("Enter")
        assert page.input_value("#margin") == "0.01"
    page.select_option("#metric", "train/seconds")  # the margin has the unit of the metric
    assert page.input_value("#margin") == ""
    assert "there is no margin for train/seconds" in page.text_content("#table-note")
    assert "TOST" not in "".join(tab.column("difference to baseline"))


def test_the_margin_of_the_command_is_the_first(runs: Path, empty_tab: Tab) -> None:
    page = empty_tab.open(page_of(runs, "--margin=0.5", name="margin.html"))
    page.locator("button.pin").first.click()
    assert page.input_value("#margin") == "0.5"
    page.fill("#margin", "0.01")
    page.keyboard.press("Enter")
    for margin in ("-1", "0", "%22x%22", "1e999"):
        empty_tab.show(f"#margin={margin}&baseline=%22made-0%22")
        assert page.input_value("#margin") == "0.5"
    empty_tab.show("#margin=null&baseline=%22made-0%22")
    assert page.input_value("#margin") == "0.01"


OUTCOMES = """([family, better, margin]) => comparePage.verdicts.outcomes(
    family.map(([a, b]) => comparePage.statistics.difference(new Map(a), new Map(b))),
    better, margin)"""
TESTED = re.compile(r"[+\u2212]0\.\d{4} \(.* to .*\): [a-z].*, p [<=] .*, TOST p [<=] .*")
Family = list[tuple[dict[int, float], dict[int, float]]]


def families() -> list[Family]:
    """Lines with their baselines: equal, near, far, noisy, without any spread, and too few."""
    dice = random.Random(2)
    found: list[Family] = []
    for size in (1, 2, 9):
        for n, theirs_n in ((3, 3), (5, 5), (4, 7), (30, 30)):
            family: Family = [({0: 0.5}, {0: 0.5})]
            for _ in range(size):
                base = {seed: dice.gauss(0.5, 0.004) for seed in range(theirs_n)}
                middle, spread = dice.choice([0.47, 0.5, 0.506, 0.53]), dice.choice([0.001, 0.02])
                family.append(({seed: dice.gauss(middle, spread) for seed in range(n)}, base))
            found.append(family)
    constant = dict.fromkeys(range(3), 0.5)
    for count in (3, 4):
        lines = [dict.fromkeys(range(count), value) for value in (0.5, 0.508, 0.75)]
        found.append([(line, constant) for line in lines])
    return found


@pytest.mark.parametrize("metric", ["test/acc", "val/loss", "train/images_per_s"])
@pytest.mark.parametrize("margin", [None, 0.01, 0.25])
def test_verdicts_agree_with_those_of_the_table(
    metric: str, margin: float | None, tab: Tab
) -> None:
    seen = set()
    for family in families():
        pairs = [[[*map(list, side.items())] for side in pair] for pair in family]
        found = tab.page.evaluate(OUTCOMES, [pairs, better_if(metric), margin])
        differences: list[Difference | None] = [difference(*pair) for pair in family]
        wanted = outcomes(differences, metric, margin)
        assert [line is None for line in found] == [line is None for line in wanted]
        for ours, theirs in zip(found, wanted, strict=True):
            if theirs is None:
                continue
            seen.add(theirs.verdict)
            assert (ours["verdict"], ours["isWithin"]) == (theirs.verdict, theirs.is_within)
            assert (ours["family"], ours["margin"]) == (theirs.family, theirs.margin)
            figures = (ours["holm"], ours["equivalence"], ours["equivalenceHolm"])
            same = (theirs.holm, theirs.equivalence, theirs.equivalence_holm)
            if margin is None:
                assert figures[1:] == same[1:] == (None, None)
            known = figures[: 1 if margin is None else 3], same[: 1 if margin is None else 3]
            assert known[0] == pytest.approx(known[1], rel=1e-6, abs=1e-12)
    assert len(seen) >= 3 and ("equivalent" in seen) == (margin is not None)


def test_statistics_agree_with_those_of_the_table(tab: Tab) -> None:
    page = tab.page
    dice = random.Random(1)
    for n in (2, 3, 5, 40):
        for theirs_n in (n, n + 2):
            ours = {seed: dice.gauss(0.5, 0.01) for seed in range(n)}
            theirs = {seed: dice.gauss(0.51, 0.03) for seed in range(theirs_n)}
            check(page, ours, theirs)
    check(page, {0: 1.0, 1: 1.0, 2: 1.0}, {0: 1.0, 1: 1.0, 2: 1.0})
    check(page, {0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.0, 2: 2.0, 3: 2.0})
    check(page, {-1: 0.1, -2: 0.2, -3: 0.4}, {-1: 0.3, -2: 0.2, -3: 0.5})
    check(page, {0: 0.1, 1: 0.2, 2: 0.3}, {0: 0.9, 1: 0.99, 2: 1.1})
    holm = page.evaluate("comparePage.statistics.holm([0.01, 0.04, 0.03, 0.005])")
    assert holm == pytest.approx([0.03, 0.06, 0.06, 0.02])


def check(page: Any, ours: dict[int, float], theirs: dict[int, float]) -> None:
    """Compares the page's test with that of `significance.difference`."""
    found = page.evaluate(
        "([a, b]) => comparePage.statistics.difference(new Map(a), new Map(b))",
        [[*map(list, ours.items())], [*map(list, theirs.items())]],
    )
    wanted = difference(ours, theirs)
    if wanted is None:
        assert found is None
        return
    assert (found["test"], found["n"]) == (wanted.test, wanted.n)
    for part in ("mean", "low", "high", "p"):
        assert found[part] == pytest.approx(getattr(wanted, part), rel=1e-6, abs=1e-12)
    for margin in (0.01, 0.3, 1.0):
        same = page.evaluate(
            "([a, margin]) => comparePage.statistics.equivalence(a, margin)", [found, margin]
        )
        assert same == pytest.approx(wanted.equivalence(margin), rel=1e-6, abs=1e-12)


def test_curves_have_axes_bands_and_smoothing(tab: Tab) -> None:
    page = tab.page
    lines = [trace for trace in tab.traces() if trace["meta"]]
    assert lines[0]["x"] == [100, 200, 300, 400, 500, 600]
    assert lines[0]["meta"].endswith("(n = 3)")
    for over, last in {"images": 120_000, "epoch": 120_000 / 45_000, "compute": 3.1e14}.items():
        page.select_option("#over", over)
        assert tab.traces()[-1]["x"][-1] == pytest.approx(last)
    page.select_option("#over", "seconds")
    assert len(tab.traces()[-1]["x"]) == 200
    page.check("#xlog")
    page.check("#ylog")
    page.select_option("#spread", "runs")
    page.locator("#smooth").fill("0.9")
    assert len(tab.traces()) == 12
    kinds = "['xaxis', 'yaxis'].map((name) => document.getElementById('chart').layout[name].type)"
    assert page.evaluate(kinds) == ["log", "log"]
    assert "smoothed (0.9)" in page.text_content("#chart")
    page.get_by_label("draw made-1").uncheck()
    assert len(tab.traces()) == 9


def test_means_and_deviations_of_curves_are_right(tab: Tab) -> None:
    page = tab.page
    band = page.evaluate(
        "comparePage.statistics.bandAtPoints([{key: [1, 2], x: [1, 2], y: [1, 5]}, "
        "{key: [1], x: [1], y: [3]}])"
    )
    assert band == {"x": [1, 2], "y": [2, 5], "sd": [pytest.approx(math.sqrt(2)), 0]}
    band = page.evaluate(
        "comparePage.statistics.bandBetween([{x: [0, 4], y: [0, 4]}, {x: [2, 6], y: [4, 8]}], 3)"
    )
    assert (band["x"], band["y"]) == ([2, 3, 4], [3, 4, 5])
    assert page.evaluate("comparePage.statistics.smoothed([1, 1, 1], 0.9)") == pytest.approx(
        [1] * 3
    )


def test_a_setting_is_drawn_against_a_metric(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("tab", name="Setting and metric").click()
    page.select_option("#across", label="lr")
    page.select_option("#colour", label="norm")
    assert sum(len(trace["x"]) for trace in tab.traces()) == 12
    page.get_by_role("tab", name="Parallel coordinates").click()
    points = [y for trace in tab.traces() for y in trace["y"] if y is not None]
    assert len(points) % 12 == 0 and len(points) >= 36


def test_a_run_has_its_end_its_matrix_and_its_mistakes(tab: Tab) -> None:
    page = tab.page
    page.get_by_role("button", name="made-0", exact=True).click()
    dialog = page.locator("dialog")
    assert dialog.locator("h2").text_content() == "made-0-s0"
    assert "finished" in dialog.locator("details", has_text="How it ended").text_content()
    assert (
        "model.optimizer.lr" in dialog.locator("details", has_text="Configuration").text_content()
    )
    assert dialog.locator("img").get_attribute("src").startswith("data:image/png;base64,")
    read = "document.querySelector('.matrix').data[0].z"
    counts = page.evaluate(read)
    dialog.get_by_label("Subtract the matrix of").select_option("made-0-s1")
    other = page.evaluate("comparePage.model.data.runs.get('made-0-s1').confusion.test.counts")
    assert page.evaluate(read)[0][0] == counts[0][0] - other[0][0]
    dialog.get_by_label("Run of made-0").select_option("made-0-s1")
    assert dialog.locator("h2").text_content() == "made-0-s1"
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_a_link_holds_the_view(tab: Tab, empty_tab: Tab) -> None:
    page = tab.page
    page.select_option("#group", "run")
    page.locator("#table-box th", has_text="name").click()
    page.fill("#search", "s1")
    page.locator("button.pin").nth(1).click()
    page.select_option("#over", "epoch")
    page.check("#ylog")
    page.get_by_label("draw made-2-s1").uncheck()
    page.get_by_role("button", name="made-3-s1", exact=True).click()
    link, names, state = page.url, tab.names(), page.evaluate("comparePage.view()")
    again = empty_tab.open(link)
    assert empty_tab.names() == names
    assert again.evaluate("comparePage.view()") == state
    assert again.locator("dialog h2").text_content() == "made-3-s1"


def test_a_broken_link_is_no_error(tab: Tab) -> None:
    tab.show(
        "#group=%7B&sort=%5B1%5D&filters=%5B%5B%22a%22%5D%5D&smooth=%22x%22&baseline=%22gone%22"
    )
    assert len(tab.names()) == 4
    gone = ("drawn", "metric", "group", "over", "tab", "across", "up", "lastAxis", "open", "colour")
    tab.show("#" + "&".join(f"{key}=%22gone%22" for key in gone))
    assert len(tab.names()) == 1


def test_every_control_is_reached_by_the_keyboard(tab: Tab) -> None:
    page = tab.page
    reached = set()
    for _ in range(90):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.dataset.act || "
                "document.activeElement.dataset.tab || document.activeElement.textContent"
            )
        )
    wanted = {"link", "theme", "group", "metric", "curve", "baseline", "search", "filter-key"}
    assert wanted | {"pin", "open", "draw", "curves", "drawn", "over", "smooth", "xlog"} <= reached
    page.focus("[data-tab=curves]")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.tab") == "scatter"
    page.focus("button.open")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    header = page.locator("#table-box thead .dt-column-order").nth(1)
    names = tab.names()
    header.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    assert tab.names() == sorted(names)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_both_themes(scheme: str, tab: Tab) -> None:
    page = tab.page
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 400, "height": 800})
    width = "document.documentElement.scrollWidth"
    shade = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
    assert (int(page.evaluate(shade)) < 128) == (scheme == "dark")
    for name in ("Setting and metric", "Parallel coordinates", "Curves"):
        page.get_by_role("tab", name=name).click()
        page.wait_for_timeout(60)
        assert page.evaluate(width) <= 400
    page.locator("button.open").first.click()
    assert page.evaluate(width) <= 400
    page.keyboard.press("Escape")
    page.select_option("#theme", "light" if scheme == "dark" else "dark")
    assert (int(page.evaluate(shade)) < 128) == (scheme != "dark")
    page.select_option("#theme", "")
    page.set_viewport_size({"width": 1280, "height": 900})


def hostile_run(folder: Path, text: str, number: int) -> None:
    """A run whose keys and values are all a text that may be taken for code."""
    made = folder.parent.parent / f"made-{number}"
    make_runs(made, 1, points=2)
    shutil.move(made / "made-0-s0", folder)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["init_args"] |= {"norm": text, text: f"{number} {text}"}
    config["trainer"]["callbacks"] = [{"class_path": text, "init_args": {text: number}}]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    record = json.loads((folder / "record.json").read_text())
    record["summary"] |= {text: 0.5, f"{text}/acc": 0.5}
    record |= {"error": text, "command": text, "data": text, "status": "failed", "stopped_by": text}
    record["hardware"] = {"cpu": text}
    (folder / "record.json").write_text(json.dumps(record))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 300, text: 0.1, "val/acc": 0.4}) + "\n")
    matrix = {"classes": [text, "b"], "counts": [[1, 2], [3, 4]]}
    (folder / "confusion_test.json").write_text(json.dumps(matrix))


def test_text_of_a_run_is_never_code(empty_tab: Tab, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for number, text in enumerate(HOSTILE):
        hostile_run(runs / f"{number}{text.replace('/', '_')}", text, number)
    page = empty_tab.open(page_of(runs))
    assert {*empty_tab.names()} == {path.name for path in runs.iterdir()}
    page.evaluate(
        "addEventListener('securitypolicyviolation', (event) => {"
        " globalThis.blocked = [event.violatedDirective, event.blockedURI]; })"
    )
    page.locator("#columns input").first.evaluate("(box) => box.click()")
    for choice in ("drawn", "group", "metric"):
        page.evaluate(EACH, choice)
    for name, choices in {
        "Setting and metric": ("across", "colour", "up"),
        "Parallel coordinates": ("last-axis",),
    }.items():
        page.get_by_role("tab", name=name).click()
        for choice in choices:
            page.evaluate(EACH, choice)
    page.select_option("#group", "run")
    for at in range(len(HOSTILE)):
        page.locator("button.open").nth(at).click()
        page.wait_for_timeout(30)
        page.keyboard.press("Escape")
    foreign = "main img, main b, main i, main script, [onerror], [onload], a[href]"
    assert page.locator(foreign).count() == 0
    assert page.evaluate("globalThis.blocked ?? null") is None
    assert [url for url in empty_tab.fetched if "evil" in url] == []


def test_it_grows_while_a_run_trains(
    empty_tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_PAUSE_S", 0.0)
    runs = tmp_path / "runs"
    make_runs(runs, 2, points=3, seeds=1)
    visit = Visit(runs)
    try:
        page = empty_tab.open(visit.server.address)
        assert len(empty_tab.names()) == 2
        page.get_by_role("button", name="made-1-s0", exact=True).focus()
        with (runs / "made-1-s0/metrics.jsonl").open("a") as file:
            file.write('{"step": 400, "seconds": 9.0, "val/acc": 0.9}\n')
        make_runs(tmp_path / "more", 3, points=3, seeds=1)
        shutil.move(tmp_path / "more/made-2-s0", runs / "made-2-s0")
        shutil.rmtree(runs / "made-0-s0")
        page.evaluate("comparePage.poll()")  # now, not in two seconds
        page.locator("button.open", has_text="made-2-s0").wait_for()
        assert {*empty_tab.names()} == {"made-1-s0", "made-2-s0"}
        assert max(max(trace["y"]) for trace in empty_tab.traces()) == 0.9
        assert page.evaluate("document.activeElement.textContent") == "made-1-s0"
        own = (visit.server.address, "data:", "blob:")
        assert all(address.startswith(own) for address in empty_tab.fetched)
    finally:
        visit.close()
    page.evaluate("comparePage.poll()")
    page.locator("#state", has_text="No answer").wait_for()
    empty_tab.errors.clear()  # of the request without an answer
