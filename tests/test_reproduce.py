import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import reproduce
from experiments.reproduction.claims import CLAIMS
from experiments.reproduction.judges import first_seeds
from experiments.reproduction.kept import read_kept
from tests.conftest import PROJECT, SHORT

Reproduce = Callable[..., Path]


@pytest.fixture
def small(synthetic: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reproduce:
    """Runs claims for a few steps on small data; returns the folder of the runs and the page."""
    monkeypatch.chdir(PROJECT)
    flags = [flag for flag in synthetic if "val_size" not in flag]

    def run(*args: str) -> Path:
        root = tmp_path / "runs"
        reproduce.main([f"--runs_dir={root}", *SHORT, *flags, "--trainer.logger=false", *args])
        return root

    return run


def written(root: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("*/record.json")}


@pytest.mark.slow
def test_a_claim_runs_its_experiments_and_writes_the_page(
    small: Reproduce, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small("--only", "adam", "plateau", "--seeds=3")
    names = {
        f"{arm}-s{s}" for arm in ("two_layers_sgd", "two_layers_adam", "mlp_deep") for s in range(3)
    }
    assert written(root).keys() == names
    out = capsys.readouterr().out
    assert "[9/9] mlp_deep-s2: test 0." in out
    assert re.search("^plateau  ", out, re.MULTILINE)
    assert not re.search("^tanh  ", out, re.MULTILINE)
    page = (root / "reproduction.md").read_text()
    assert "paired t; holds: p = " in page
    assert "Warning: 9 of 9 runs are not on CIFAR-10 but on other images" in page
    assert "(reproduction/mlp_deep.png)" in page
    assert (root / "reproduction/mlp_deep.png").is_file()
    assert "data:image/png;base64," in (root / "reproduction.html").read_text()
    records = json.loads((root / "reproduction/runs.json").read_text())["runs"]
    accuracies = [run["summary"]["test/acc"] for run in records if run["arm"] == "two_layers_adam"]
    assert f"two_layers_adam: {sum(accuracies) / 3:.4f} ± " in page
    command = next(run["command"] for run in records if run["name"] == "mlp_deep-s2")
    assert command.startswith("cli.py fit --config=configs/mlp_deep.yaml ")
    assert "--seed_everything=2" in command


def test_what_exists_is_neither_run_again_nor_replaced(
    small: Reproduce, capsys: pytest.CaptureFixture[str]
) -> None:
    root = small("--only", "small-init", "--seeds=1")
    before = written(root)
    small("--only", "small-init", "--seeds=2")
    after = written(root)
    assert after.items() > before.items()
    assert len(after) == 2
    small("--only", "small-init", "--seeds=2", "--data.data_dir=~/elsewhere")  # the same images
    assert written(root) == after
    with pytest.raises(SystemExit):
        small("--only", "small-init", "--seeds=1", "--trainer.gradient_clip_val", "0.5")
    assert "(trainer.gradient_clip_val None, asked for 0.5)" in capsys.readouterr().err
    assert written(root) == after  # nothing is replaced


def test_runs_are_added_to_a_page(
    small: Reproduce, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, only = tmp_path / "page", ("--only", "small-init")
    root = small(*only, "--seeds=1", f"--output={page}")
    shutil.rmtree(root)  # the page alone keeps the run
    kept = json.loads((page / "reproduction/runs.json").read_text())
    small(*only, "--seeds=2", f"--output={page}")
    assert written(root).keys() == {"two_layers_small_init-s1"}
    content = json.loads((page / "reproduction/runs.json").read_text())
    assert [record["seed"] for record in content["runs"]] == [0, 1]
    assert content["runs"][0] == kept["runs"][0]
    assert [(w["seeds"], w["added"]) for w in content["history"]] == [
        ("1 seed", 1),
        ("2 seeds", 1),
    ]
    assert "(1 seed; 1 run), then by `" in (page / "reproduction.md").read_text()
    small(*only, "--seeds=2", f"--output={page}")  # nothing is left to do
    again = json.loads((page / "reproduction/runs.json").read_text())
    assert (again["runs"], again["history"]) == (content["runs"], content["history"])
    before = written(root)
    with pytest.raises(SystemExit) as stopped:
        small(*only, "--seeds=3", f"--output={page}", "--trainer.gradient_clip_val=0.5")
    assert stopped.value.code == 2
    said = "the page keeps two_layers_small_init-s0, a run of another command"
    assert said in capsys.readouterr().err
    assert written(root) == before  # nothing is made
    small(*only, "--seeds=1")  # a page in the folder of the runs is of these runs alone
    assert len(written(root)) == 2
    records = json.loads((root / "reproduction/runs.json").read_text())["runs"]
    assert [record["seed"] for record in records] == [0, 1]


def test_only_runs_that_were_asked_for_are_added(small: Reproduce, tmp_path: Path) -> None:
    page, only = tmp_path / "page", ("--only", "small-init")
    root = small(*only, "--seeds=2")
    shutil.copytree(root / "reproduction", page / "reproduction")
    small(*only, "--seeds=3")
    small("--only", "two-layers", "--seeds=1", f"--output={page}")
    records = json.loads((page / "reproduction/runs.json").read_text())["runs"]
    names = {record["name"] for record in records}
    assert names == {f"two_layers_small_init-s{s}" for s in (0, 1)} | {
        "mlp-s0",
        "two_layers_sgd-s0",
    }


def test_the_first_seeds_are_judged_without_a_page(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce.main([f"--rejudge={kept}", "--seeds=4", "--only", "relu"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("relu ")
    assert line.count("(n = 4)") == 2
    assert [file.name for file in kept.rglob("*") if file.is_file()] == ["runs.json"]


def test_the_readme_counts_what_the_page_says() -> None:
    page = (PROJECT / "docs/reproduction.md").read_text()
    runs = json.loads((PROJECT / "docs/reproduction/runs.json").read_text())["runs"]
    readme = " ".join((PROJECT / "README.md").read_text().split())
    words = {
        "Holds": "{} hold,",
        "Does not hold": "{} do not,",
        "Equal within a point": "{} is about a difference that is shown to be below a point",
        "Compatible": "{} name a figure that is compatible with our runs",
        "Inside noise": "{} are within the noise",
    }
    counts = dict(re.findall(r"^([A-Z][a-z ]+) \((\d+)\): ", page, re.MULTILINE))
    assert counts.keys() <= words.keys()
    for verdict, count in counts.items():
        assert words[verdict].format(count) in readme
    assert f"of {sum(map(int, counts.values()))} claims, " in readme
    assert readme.count(f"{len(runs)} runs") == 2


def test_the_verdicts_that_changed_are_listed() -> None:
    """Of the list, all but the verdicts of the old tests can be computed."""
    text = (PROJECT / "docs/reproduction_changes.md").read_text()
    pattern = r"^\| `([a-z-]+)` \| ([a-z ]+) \| ([a-z ]+) \| ([a-z ]+) \| (\w+)"
    listed = {key: row for key, *row in re.findall(pattern, text, re.MULTILINE)}
    runs = read_kept(PROJECT / "docs").runs
    before: Counter[str] = Counter()
    for claim in CLAIMS:
        few, every = (claim.judge.judge(found).verdict for found in (first_seeds(runs, 5), runs))
        then, again, now, why = listed.get(claim.key, [few, few, few, ""])
        before[then] += 1
        assert [again, now] == [few, every], claim.key
        changed = {"tests": then != again, "seeds": again != now}
        assert why == "" or changed[why], claim.key
    assert before == {"holds": 25, "does not hold": 5, "inside noise": 5}
    assert listed.keys() <= {claim.key for claim in CLAIMS}


def test_the_committed_page_is_what_its_kept_runs_come_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    docs = PROJECT / "docs"
    shutil.copytree(docs / "reproduction", tmp_path / "reproduction")
    reproduce.main([f"--rejudge={tmp_path}"])
    page = "reproduction.md"
    assert (tmp_path / page).read_text() == (docs / page).read_text()
    assert "tanh-gradient" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", '{"runs": [{"arm": "mlp"}], "intro": []}'])
def test_nothing_to_judge_again_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "reproduction").mkdir()
        (tmp_path / "reproduction/runs.json").write_text(content)
    with pytest.raises(SystemExit, match=r"error: .*runs\.json") as stopped:
        reproduce.main([f"--rejudge={tmp_path}"])
    assert "\n" not in str(stopped.value)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A folder with the runs that a page keeps."""
    folder = tmp_path / "page"
    (folder / "reproduction").mkdir(parents=True)
    shutil.copy(PROJECT / "docs/reproduction/runs.json", folder / "reproduction")
    return folder


def test_a_page_s_data_that_is_a_link_is_refused(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (kept / "reproduction").rename(tmp_path / "theirs")
    (tmp_path / "theirs" / "changes.png").touch()
    (kept / "reproduction").symlink_to(tmp_path / "theirs")
    asked = (["--rejudge", f"{kept}"], ["--output", f"{kept}"], ["--runs_dir", f"{kept}"])
    for args in asked:
        with pytest.raises(SystemExit) as stopped:
            reproduce.main([f"--runs_dir={tmp_path / 'runs'}", *args])
        assert stopped.value.code == 2
        assert "reproduction is a symbolic link: put the folder" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "theirs").iterdir()} == {"runs.json", "changes.png"}
    assert [path.name for path in kept.iterdir()] == ["reproduction"]
    assert not (tmp_path / "runs").exists()


def test_a_page_changes_its_own_files_alone(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    data = kept / "reproduction" / "runs.json"
    content = json.loads(data.read_text())
    content["runs"] = [run for run in content["runs"] if run["arm"] == "mlp_numpy"]
    data.write_text(json.dumps(content))
    links = ["reproduction.md", "reproduction.html", "reproduction/mlp_numpy.png"]
    links += [".reproduction.md.partial", "reproduction/.mlp_numpy.png.partial"]
    for name in links:
        (kept / name).symlink_to(tmp_path / "precious")
    (kept / "reproduction" / "holiday.png").touch()
    (tmp_path / "link").symlink_to(kept)  # one's own
    reproduce.main([f"--rejudge={tmp_path / 'link'}"])
    assert (tmp_path / "precious").read_text() == "precious"
    assert not [name for name in links[:3] if (kept / name).is_symlink()]
    assert (kept / "reproduction" / "holiday.png").exists()


FOREIGN: dict[str, object] = {
    "seed": "0",
    "name": ["x"],
    "status": {},
    "note": 5,
    "curves": {"train/loss": [[1, 2, 3]]},
    "summary": {"test/acc": "0.5"},
    "activations": [5],
    "git": "abc",
    "arm": "../../x",
}


@pytest.mark.parametrize("field", [*FOREIGN, "deep", "intro"])
def test_kept_runs_of_another_kind_are_one_line(field: str, kept: Path) -> None:
    path = kept / "reproduction" / "runs.json"
    content = json.loads(path.read_text())
    content["runs"] = content["runs"][:3]
    if field == "intro":
        content["intro"] = [{"a": 1}]
    elif field != "deep":
        content["runs"][1][field] = FOREIGN[field]
    path.write_text("[" * 200_000 if field == "deep" else json.dumps(content))
    with pytest.raises(SystemExit, match=r"^error: [^\n]*runs\.json is no file of kept runs"):
        reproduce.main([f"--rejudge={kept}"])
    assert [file.name for file in kept.rglob("*") if file.is_file()] == ["runs.json"]


def test_foreign_text_is_text_on_the_page(kept: Path) -> None:
    path = kept / "reproduction" / "runs.json"
    content = json.loads(path.read_text())
    content["intro"] = ["# <img src=x> `a` ![](http://evil/)", "\x1b[31m"]
    content["runs"] = content["runs"][:3]
    for record in content["runs"]:
        record["git"] = {"commit": "<b>|`$"}
    path.write_text(json.dumps(content))
    reproduce.main([f"--rejudge={kept}"])
    page = (kept / "reproduction.md").read_text()
    assert r"\# &lt;img src=x> `a` ![\](http\://evil/)" in page
    assert r"&lt;b>\|\`\$" in page
    for name in ("reproduction.md", "reproduction.html"):
        text = (kept / name).read_text()
        assert "<img src=x" not in text
        assert "<b>" not in text
        assert "\x1b" not in text


def test_a_wrong_flag_stops_at_once(
    small: Reproduce, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        small("--only", "adam", "--seeds=3", "--data.nope=3")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_run_goes_on(small: Reproduce) -> None:
    root = small("--only", "small-init", "--seeds=1")
    path = root / "two_layers_small_init-s0" / "record.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "status": "interrupted"}))
    small("--only", "small-init", "--seeds=1")
    resumed = json.loads(path.read_text())
    assert (resumed["status"], len(resumed["resumed"])) == ("finished", 1)


@pytest.mark.slow
def test_the_author_s_cnn_is_explained(small: Reproduce) -> None:
    limits = [
        "--data.batch_size=4",
        "--trainer.limit_val_batches=2",
        "--trainer.limit_test_batches=2",
    ]
    flags = ["--data.eval_batch_size=4", "--trainer.precision=32-true", "--trainer.max_steps=2"]
    root = small("--only", "cnn", "--seeds=1", *limits, *flags)
    page = (root / "reproduction.md").read_text()
    assert "99.4% at 5000 (his order of images at seed 42" in page
    assert (root / "reproduction/ninety_one.png").is_file()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "adams"], "no claim 'adams'; there are numpy, pytorch"),
        (["--seeds=0"], "--seeds must be at least 1, got 0"),
        (["--model.lr=1"], "unknown option --model.lr=1"),
        (["adam"], "'adam' is no option; name claims after --only"),
        (["--data.val_size", "3", "adam"], "'adam' is the value of no flag"),
        (["--rejudge=docs", "--output=docs"], "--rejudge runs nothing"),
        (["--rejudge=docs", "--budget=full"], "--rejudge runs nothing"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        reproduce.main([*args, f"--runs_dir={tmp_path / 'runs'}"])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_the_list_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce.main(["--list", f"--runs_dir={tmp_path / 'runs'}"])
    assert "small-init" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_arguments_of_the_process_are_restored(small: Reproduce) -> None:
    before = list(sys.argv)
    small("--only", "small-init", "--seeds=1")
    assert sys.argv == before
