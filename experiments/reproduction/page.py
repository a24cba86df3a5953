"""Writes the page with the verdicts on the report's claims, from the runs kept beside it."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from experiments.analysis import pages
from experiments.records.files import replace_file
from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.claims import CLAIMS, Claim
from experiments.reproduction.figures import draw_figures, remove_figures
from experiments.reproduction.judges import Runs, diverged, spread, values
from experiments.reproduction.kept import data_of, read_kept


def write_page(folder: Path, title: str, seen: Mapping[int, float]) -> Runs:
    """Writes ``reproduction.md``, ``reproduction.html`` and their figures from the runs kept there.

    Args:
        folder: the folder of the kept runs and of the page.
        title: the page's title.
        seen: by step, the share of images in the report's CNN evaluations that were trained before.

    Returns:
        The runs.

    Raises:
        ValueError: see `read_kept`.
    """
    runs, intro = read_kept(folder)
    data = data_of(folder)
    remove_figures(data)
    blocks: list[pages.Block] = [*(pages.Paragraph(text, has_code=True) for text in intro)]
    blocks += [pages.Heading("Claims"), pages.Table(claims_table(runs), ("claim",))]
    blocks += _verdicts(runs)
    blocks += [pages.Heading("Figures"), *draw_figures(runs, data, seen)]
    blocks += [pages.Heading("Tests"), pages.Paragraph(_TESTS)]
    blocks += [pages.Table(tests_table(runs), ("claim",)), pages.Heading("Runs")]
    blocks += [pages.Paragraph(f"{_RUNS} {_commits(runs)}", has_code=True)]
    blocks += [pages.Table(arms_table(runs), ("command",))]
    replace_file(folder / "reproduction.md", pages.markdown(title, blocks, folder))
    replace_file(folder / "reproduction.html", pages.html_page(title, blocks))
    return runs


_TESTS = (
    "All tests are at the 5 % level, by Student's t over seeds. A figure of the report holds if it "
    "is inside the prediction interval for one more run of ours. A difference is tested in pairs "
    "of the same seed: its whole interval must be above 0, or above the margin that a claim names "
    '(our number for the report\'s "a lot"). "Does not help" does not hold if the change is '
    "significantly better, even by a little (Bonferroni over the changes of a claim). Otherwise, "
    "it holds if the interval of the difference ends below one point. If a run diverged, its "
    "missing accuracy counts as chance, 0.1."
)
_RUNS = (
    "Test accuracy is measured once, with the last weights on the official 10,000 images. "
    "`reproduction/runs.json` has every run with its seed, command, commit, versions and curves."
)


def _commits(runs: Runs) -> str:
    """The number of runs by commit."""
    counts = Counter(_commit(run) for found in runs.values() for run in found.values())
    listed = ", ".join(f"{count} of {commit}" for commit, count in counts.most_common())
    return f"By commit: {listed}."


def _commit(run: Run) -> str:
    git = run.fields.get("git") or {}
    return f"{str(git.get('commit'))[:7]}{' with changes' if git.get('dirty') else ''}"


def claims_table(runs: Runs, claims: Iterable[Claim] = CLAIMS) -> pd.DataFrame:
    """Claim, the report's figure, ours, verdict."""
    rows = []
    for claim in claims:
        judged = claim.judge.judge(runs)
        text = f"{claim.text} (`{claim.key}`)"
        rows.append((claim.section, text, claim.number, judged.ours, judged.verdict))
    return pd.DataFrame(rows, columns=["section", "claim", "report", "ours", "verdict"])


def tests_table(runs: Runs) -> pd.DataFrame:
    """The test behind each verdict."""
    rows = [
        (f"`{claim.key}`", judged.test, judged.verdict)
        for claim in CLAIMS
        for judged in [claim.judge.judge(runs)]
    ]
    return pd.DataFrame(rows, columns=["claim", "test", "verdict"])


def _verdicts(runs: Runs) -> list[pages.Block]:
    found: dict[str, list[str]] = {}
    for claim in CLAIMS:
        found.setdefault(claim.judge.judge(runs).verdict, []).append(f"`{claim.key}`")
    lines = [
        f"{verdict.capitalize()} ({len(keys)}): {', '.join(keys)}."
        for verdict, keys in found.items()
    ]
    return [pages.Paragraph(line, has_code=True) for line in lines]


def arms_table(runs: Runs) -> pd.DataFrame:
    """The result of each experiment, and its command."""
    rows = []
    for name, arm in ARMS.items():
        found = runs.get(name, {})
        lost = sum(1 for run in found.values() if diverged(run))
        note = f", {lost} diverged" if lost else ""
        train = {s: v for s, r in found.items() if (v := r.value("train/acc")) is not None}
        commits = sorted({_commit(run) for run in found.values()})
        command = " ".join(["python cli.py fit", *arm.arguments()])
        rows.append(
            (
                name,
                spread(values(runs, name)) + note,
                spread(train),
                ", ".join(map(str, sorted(found))),
                ", ".join(commits),
                f"`{command}`",
            )
        )
    columns = ["experiment", "test accuracy", "train accuracy", "seeds", "commit", "command"]
    return pd.DataFrame(rows, columns=columns)
