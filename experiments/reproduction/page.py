"""Writes the page with the verdicts on the report's claims, from the runs kept beside it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import get_args

import pandas as pd

from experiments.analysis import pages
from experiments.analysis.significance import ALPHA, holm
from experiments.records.files import replace_file
from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.claims import CLAIMS, Claim
from experiments.reproduction.figures import draw_figures, remove_figures
from experiments.reproduction.introduction import introduction
from experiments.reproduction.judges import Judgement, Runs, Verdict, diverged, spread, values
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
    kept = read_kept(folder)
    runs = kept.runs
    data = data_of(folder)
    remove_figures(data)
    judged = [(claim, claim.judge.judge(runs)) for claim in CLAIMS]
    blocks: list[pages.Block] = [pages.Paragraph(text, True) for text in introduction(kept)]
    blocks += [pages.Heading("Claims"), pages.Table(claims_table(judged), ("claim",))]
    blocks += _verdicts(judged)
    blocks += [pages.Heading("Figures"), *draw_figures(runs, data, seen)]
    blocks += [pages.Heading("Tests"), *map(pages.Paragraph, _TESTS)]
    blocks += [pages.Table(tests_table(judged), ("claim",)), pages.Heading("Runs")]
    blocks += [pages.Paragraph(f"{_RUNS} {_commits(runs)}", has_code=True)]
    blocks += [pages.Table(arms_table(runs), ("command",))]
    replace_file(folder / "reproduction.md", pages.markdown(title, blocks, folder))
    replace_file(folder / "reproduction.html", pages.html_page(title, blocks))
    return runs


_TESTS = (
    "All tests are by Student's t over seeds, and each verdict is at the 5 % level. Each claim has "
    'two p-values: a small one for "holds" shows that the claim holds, a small one for "fails" '
    'shows that it does not. A large p-value shows nothing: then the verdict is "inside noise". '
    "That two things are equal is shown by an equivalence test (two one-sided t tests): the "
    "difference is smaller than one point of accuracy.",
    "A difference is tested in pairs of the same seed: its whole 95 % interval must be above 0, or "
    'above the margin that a claim names (our number for the report\'s "a lot"). If neither side '
    "is shown to be better, but the difference is shown to be below a point, the verdict is "
    '"equal within a point". A claim on a figure of the report holds if our runs are shown to be '
    "equal to it, within a point and as one more run of ours; it does not hold if the figure is "
    "outside the 95 % prediction interval of one more run. Between the two, the figure is "
    '"compatible": it could be one of our runs, but so could figures that are a point away.',
    '"Does not help" holds if every change is shown to gain less than one point (one-sided, '
    "non-superiority). It does not hold if any change is shown to be better, even by a little; if "
    'the claim says "no significant gain" or "works fine", only if by more than a point. If a '
    "claim has several parts, all must be shown, without a correction; the p-values against it are "
    "corrected by Holm over its parts. If a run diverged, its missing accuracy counts as chance, "
    "0.1. Runs that agree to the last digit have no spread, so their p-value is 0.",
    'The column "p" has the p-value of the verdict, or the smallest one if nothing is shown. The '
    "next one is corrected by Holm over all claims. Where it is above 0.05, the verdict may be one "
    "of those that chance alone makes of so many claims.",
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


Judged = Sequence[tuple[Claim, Judgement]]


def claims_table(judged: Judged) -> pd.DataFrame:
    """Claim, the report's figure, ours, verdict."""
    rows = [
        (claim.section, f"{claim.text} (`{claim.key}`)", claim.number, found.ours, found.verdict)
        for claim, found in judged
    ]
    return pd.DataFrame(rows, columns=["section", "claim", "report", "ours", "verdict"])


def tests_table(judged: Judged) -> pd.DataFrame:
    """The test behind each verdict, its p-value, and this corrected over all claims."""
    rows = [
        (f"`{claim.key}`", found.test, _p(found.p), _p(corrected), found.verdict)
        for (claim, found), corrected in zip(judged, over_all(judged), strict=True)
    ]
    columns = ["claim", "test", "p", "p (Holm, all claims)", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}"


def over_all(judged: Judged) -> list[float | None]:
    """The p-values of the verdicts, corrected by Holm over all claims."""
    return holm([found.p for _, found in judged])


def _verdicts(judged: Judged) -> list[pages.Block]:
    lines = []
    for verdict in get_args(Verdict):
        if keys := [f"`{claim.key}`" for claim, found in judged if found.verdict == verdict]:
            lines.append(f"{verdict.capitalize()} ({len(keys)}): {', '.join(keys)}.")
    return [pages.Paragraph(line, has_code=True) for line in [*lines, *_family(judged)]]


def _family(judged: Judged) -> list[str]:
    """Which verdicts hold for all claims together."""
    shown = [
        (claim.key, corrected)
        for (claim, found), corrected in zip(judged, over_all(judged), strict=True)
        if corrected is not None and found.p is not None and found.p < ALPHA
    ]
    lost = [f"`{key}`" for key, corrected in shown if corrected >= ALPHA]
    if not shown:
        return []
    which = f"; {', '.join(lost)} would not" if lost else ""
    return [
        f"Each verdict is at 5 % for its claim alone. With Holm's correction over all "
        f"{len(judged)} claims, {len(shown) - len(lost)} of the {len(shown)} verdicts that show "
        f"something would stay{which}."
    ]


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
