"""The page that says which claims of the report hold, with its figures and the data behind both."""

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from experiments import pages, plots
from experiments.claims import (
    ACCURACY,
    ARMS,
    BATCH_SIZES,
    CLAIMS,
    NORMS,
    Claim,
    Runs,
    diverged,
    spread,
    values,
)
from experiments.files import replace_file
from experiments.reader import check_record, read_json
from experiments.runs import Run
from experiments.significance import difference

_T = TypeVar("_T")
_CURVE = "test_curve/acc"
_KEPT = (ACCURACY, "test/loss", "train/acc", "train/loss", "train/steps", "train/seconds")
_CURVES = (_CURVE, "train/loss", "train/acc", "val/acc")

_KEPT_RUNS = "runs.json"
_LARGEST_KEPT = 2**25  # bytes; 150 runs with their curves have 2,000,000
# Their names, so that nothing else is removed before they are drawn again.
_PICTURES = (
    *("mlp_numpy", "mlp_deep", "cnn_report"),
    *("ninety_one", "changes", "activations", "batch_sizes"),
)
_PLACES = {"--runs_dir", "--data.data_dir", "--overwrite"}


def keep(runs: Runs, folder: Path, intro: Sequence[str]) -> None:
    """Writes ``reproduction/runs.json``, all that a page is made of.

    Args:
        runs: by arm and seed.
        folder: of the page.
        intro: paragraphs on how the runs were made.
    """
    content = {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "intro": list(intro),
        "runs": [_record(name, run) for name, found in runs.items() for run in found.values()],
    }
    data = data_of(folder)
    data.mkdir(parents=True, exist_ok=True)
    replace_file(data / _KEPT_RUNS, json.dumps(content, indent=1) + "\n")


def data_of(folder: Path) -> Path:
    """Where a page's runs and pictures lie.

    Raises:
        ValueError: if that is a link: what it leads to is not the page's to change.
    """
    data = folder / "reproduction"
    if data.is_symlink():
        raise ValueError(f"{data} is a symbolic link: put the folder that it leads to in its place")
    return data


def read_kept(folder: Path) -> tuple[dict[str, dict[int, Run]], list[str]]:
    """Reads what `keep` wrote.

    Returns:
        The runs by arm and seed, as far as a page needs them, and the intro.

    Raises:
        ValueError: if there is nothing, or nothing of this kind.
    """
    path = data_of(folder) / _KEPT_RUNS
    try:
        content = read_json(path, _LARGEST_KEPT)
        runs: dict[str, dict[int, Run]] = {name: {} for name in ARMS}
        for record in content["runs"]:
            run = _run(record, path)
            runs[record["arm"]][_of(int, run.seed)] = run
        return runs, [_of(str, text) for text in content["intro"]]
    except OSError as error:
        raise ValueError(f"no runs are kept in {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no file of kept runs: {error!r:.200}") from error


def _run(record: Mapping[str, Any], path: Path) -> Run:
    """A run again, from what was kept of it."""
    activations = record.get("activations", [])
    curves = record["curves"].items()
    entries = [{"step": step, key: value} for key, points in curves for step, value in points]
    entries += activations
    last = {key: points[-1][1] for key, points in curves}
    summary = {**last, **record["summary"], **(activations[-1] if activations else {})}
    known = ("seed", "data", "images", "started", "git", "command", "versions", "hardware")
    fields = {"summary": summary, **{key: record.get(key) for key in known}}
    check_record(fields)
    words = (_of(str, record[key]) for key in ("name", "status", "note"))
    name, status, note = words
    return Run(name, path, status, fields, {}, entries, note)


def _of(kind: type[_T], value: object) -> _T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def write_page(folder: Path, title: str, seen: Mapping[int, float]) -> Runs:
    """Writes ``reproduction.md``, ``reproduction.html`` and their figures from the runs kept there.

    Args:
        folder: where they are kept, and where to write.
        title: the page's title.
        seen: share of the images of the report's CNN evaluations that had been trained on, by step.

    Returns:
        The runs.

    Raises:
        ValueError: see `read_kept`.
    """
    runs, intro = read_kept(folder)
    data = data_of(folder)
    for name in _PICTURES:
        (data / f"{name}.png").unlink(missing_ok=True)
    blocks: list[pages.Block] = [*(pages.Paragraph(text, has_code=True) for text in intro)]
    blocks += [pages.Heading("Claims"), pages.Table(claims_table(runs), ("claim",))]
    blocks += _verdicts(runs)
    blocks += [pages.Heading("Figures"), *_figures(runs, data, seen)]
    blocks += [pages.Heading("Tests"), pages.Paragraph(_TESTS)]
    blocks += [pages.Table(tests_table(runs), ("claim",)), pages.Heading("Runs")]
    blocks += [pages.Paragraph(f"{_RUNS} {_commits(runs)}", has_code=True)]
    blocks += [pages.Table(arms_table(runs), ("command",))]
    replace_file(folder / "reproduction.md", pages.markdown(title, blocks, folder))
    replace_file(folder / "reproduction.html", pages.html_page(title, blocks))
    return runs


_TESTS = (
    "All at 5 %, by Student's t over seeds. A figure of the report holds if it is inside the "
    "interval that one more run of ours would fall into. A difference is tested in pairs of the "
    "same seed: all of its interval has to be beyond 0, or beyond the margin that a claim names "
    '(what the report calls "a lot", in our numbers). "Does not help" does not hold if the change '
    "is significantly better, by however little (Bonferroni over the changes of a claim); else it "
    "holds if the interval of the difference ends below one point. Where a run diverged, its "
    "missing accuracy counts as chance, 0.1."
)
_RUNS = (
    "Test accuracy is of the last weights, on the official 10,000 images, once. Every run with its "
    "seed, command, commit, versions and curves is in `reproduction/runs.json`."
)


def _commits(runs: Runs) -> str:
    """How many runs are of which commit."""
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
    """How each verdict came about."""
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
    """What each experiment came to, and the command that runs it."""
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


def _record(arm: str, run: Run) -> dict[str, Any]:
    """What is kept of a run."""
    kept = {key: run.fields.get(key) for key in ("seed", "data", "images", "started", "git")}
    kept["command"] = _without_places(str(run.fields.get("command")))
    shared = {key: run.fields.get(key) for key in ("versions", "hardware")}
    summary = {key: run.value(key) for key in _KEPT}
    curves = {key: list(map(list, run.curve(key).items())) for key in _CURVES}
    activations = [entry for entry in run.entries if "activations/1/mean" in entry]
    return {
        "name": run.name,
        "arm": arm,
        "status": run.status,
        "note": run.note,
        **kept,
        "summary": {key: value for key, value in summary.items() if value is not None},
        "curves": {key: points for key, points in curves.items() if points},
        **({"activations": activations} if activations else {}),
        **shared,
    }


# ---- figures ------------------------------------------------------------------------------------


def _figures(runs: Runs, folder: Path, seen: Mapping[int, float]) -> Iterable[pages.Block]:
    figures = (
        _curves(runs, "mlp_numpy", folder, "Figure 1 of the report: the NumPy MLP"),
        _curves(runs, "mlp_deep", folder, "Figure 2: the best MLP"),
        _curves(runs, "cnn_report", folder, "Figure 3: the author's CNN"),
        _ninety_one(runs, folder, seen),
        _changes(runs, folder),
        _activations(runs, folder),
        _batch_sizes(runs, folder),
    )
    return [figure for figure in figures if figure is not None]


def _all(runs: Runs, arm: str, metric: str) -> list[dict[int, float]]:
    found = [run.curve(metric) for run in runs.get(arm, {}).values()]
    return [curve for curve in found if curve]


def _curves(runs: Runs, arm: str, folder: Path, title: str) -> pages.Figure | None:
    if not _all(runs, arm, "train/loss"):
        return None
    figure, (left, right) = plots.panels(2, title)
    plots.band(left, _all(runs, arm, "train/loss"), "train loss", color="tab:blue")
    plots.band(right, _all(runs, arm, _CURVE), "test set", color="tab:red")
    plots.band(right, _all(runs, arm, "train/acc"), "training batches", color="tab:blue", alpha=0.5)
    left.set(xlabel="optimiser steps", ylabel="cross-entropy")
    right.set(xlabel="optimiser steps", ylabel="accuracy")
    left.legend()
    right.legend()
    plots.save(figure, folder / f"{arm}.png")
    caption = f"{title}: mean and standard deviation over seeds, `{arm}`."
    return pages.Figure(folder / f"{arm}.png", caption)


def _ninety_one(runs: Runs, folder: Path, seen: Mapping[int, float]) -> pages.Figure | None:
    """The same weights on the author's train stream and on the test set."""
    if not _all(runs, "cnn_report", "val/acc"):
        return None
    figure, axes = plots.panels(2, "Where 91 % came from: the same weights, evaluated twice")
    titles = {"cnn_report": "as its author built it", "cnn": "as specified"}
    for ax, (arm, title) in zip(axes, titles.items(), strict=True):
        stream, test = _all(runs, arm, "val/acc"), _all(runs, arm, _CURVE)
        plots.band(ax, stream, "his evaluation: the training stream", color="tab:blue", marker="o")
        plots.band(ax, test, "test set", color="tab:red", marker="o")
        ax.plot(*zip(*seen.items(), strict=True), color="grey", ls="--", label="share trained on")
        ax.set(xlabel="optimiser steps", ylabel="accuracy", title=title, ylim=(0, 1.02))
        ax.legend(loc="lower right")
    plots.save(figure, folder / "ninety_one.png")
    caption = (
        "The author's script evaluates on images drawn from the training stream. The dashed line "
        "is the share of them that had been trained on before: "
        + ", ".join(f"{share:.1%} at {step}" for step, share in seen.items() if step % 1000 == 0)
        + " (his order of images at seed 42, replayed without a network)."
    )
    return pages.Figure(folder / "ninety_one.png", caption)


def _changes(runs: Runs, folder: Path) -> pages.Figure | None:
    """What each change to the best MLP does to its test accuracy."""
    best = values(runs, "mlp_deep")
    rows = []
    for name, arm in ARMS.items():
        is_change = arm.configs[0] == "mlp_deep" and "ablations/protocol" in arm.configs
        found = difference(values(runs, name), best) if is_change else None
        if found is not None and name != "mlp_deep":
            rows.append((found.mean, found, name))
    if not rows:
        return None
    rows.sort(reverse=True)
    figure, (ax,) = plots.panels(1, "Changes to the best MLP: difference of test accuracy")
    figure.set_size_inches(8, 1 + 0.32 * len(rows))
    for position, (mean, found, _) in enumerate(rows):
        bars = [[mean - found.low], [found.high - mean]]
        ax.errorbar([mean], [position], xerr=bars, fmt="o", color="tab:blue", capsize=3)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(rows)), [name for *_, name in rows])
    ax.invert_yaxis()
    ax.set(xlabel="difference to `mlp_deep` with its 95 % interval".replace("`", ""))
    plots.save(figure, folder / "changes.png")
    caption = "Each change to `mlp_deep`, in pairs of the same seed, with 95 % intervals."
    return pages.Figure(folder / "changes.png", caption)


def _activations(runs: Runs, folder: Path) -> pages.Figure | None:
    """Mean, spread and derivative of the activations, layer by layer."""
    panels = {
        "mean": "mean output",
        "std": "standard deviation of the output",
        "gradient": "mean derivative",
    }
    if not _all(runs, "mlp_deep", "activations/1/mean"):
        return None
    figure, axes = plots.panels(3, "Activations of the five hidden layers")
    colors = {"mlp_deep": "tab:blue", "tanh": "tab:orange", "relu": "tab:green"}
    for ax, (kind, label) in zip(axes, panels.items(), strict=True):
        for arm, color in colors.items():
            for last, style in ((False, "--"), (True, "-")):
                layers = _layers(runs, arm, kind, last)
                name = f"{'elu' if arm == 'mlp_deep' else arm}, {'trained' if last else 'initial'}"
                plots.band(ax, layers, name, color=color, ls=style, marker="o", markersize=3)
        ax.set(xlabel="hidden layer", ylabel=label, xticks=range(1, 6))
    axes[0].legend(fontsize=7)
    plots.save(figure, folder / "activations.png")
    caption = "Tanh against ELU (section 2.2) and ReLU: mean and standard deviation over seeds."
    return pages.Figure(folder / "activations.png", caption)


def _layers(runs: Runs, arm: str, kind: str, last: bool) -> list[dict[int, float]]:
    """A figure of the activations by layer, one mapping a run, before or after training."""
    found = []
    for run in runs.get(arm, {}).values():
        curves = {layer: run.curve(f"activations/{layer}/{kind}") for layer in range(1, 6)}
        found.append(
            {
                layer: curve[(max if last else min)(curve)]
                for layer, curve in curves.items()
                if curve
            }
        )
    return found


def _batch_sizes(runs: Runs, folder: Path) -> pages.Figure | None:
    """Test accuracy by batch size, for each normalisation."""
    found = {
        norm: [
            {size: value for size in BATCH_SIZES if (value := _at(runs, f"{norm}_{size}", seed))}
            for seed in sorted(runs.get(f"{norm}_{BATCH_SIZES[-1]}", {}))
        ]
        for norm in NORMS
    }
    if not any(any(curves) for curves in found.values()):
        return None
    figure, (ax,) = plots.panels(1, "Batch against layer normalisation by batch size")
    for norm, curves in found.items():
        plots.band(ax, curves, f"{norm} normalisation", marker="o")
    ax.set(xlabel="batch size", ylabel="test accuracy after two epochs", xscale="log")
    ax.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    ax.minorticks_off()
    ax.legend()
    plots.save(figure, folder / "batch_sizes.png")
    caption = (
        "The network of `mlp_deep` under SGD with momentum, two epochs, a learning rate in "
        "proportion to the batch size (section 3.3): mean and standard deviation over seeds."
    )
    return pages.Figure(folder / "batch_sizes.png", caption)


def _at(runs: Runs, arm: str, seed: int) -> float | None:
    return values(runs, arm).get(seed)


def claims_named(keys: Iterable[str]) -> list[Claim]:
    """The claims of these keys; all of them for none.

    Raises:
        ValueError: for a key that no claim has; the message names those that there are.
    """
    known = {claim.key: claim for claim in CLAIMS}
    for key in keys:
        if key not in known:
            raise ValueError(f"no claim {key!r}; there are {', '.join(known)}")
    return [known[key] for key in keys] or list(CLAIMS)


def _without_places(command: str) -> str:
    """A command without the folders of the machine that it ran on."""
    words = shlex.split(command)
    return shlex.join(word for word in words if word.partition("=")[0] not in _PLACES)
