"""The figures of the reproduction's page: curves over seeds, differences, activations."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from experiments.analysis import pages, plots
from experiments.analysis.significance import difference
from experiments.reproduction.arms import ARMS, BATCH_SIZES, NORMS
from experiments.reproduction.judges import Runs, values
from experiments.reproduction.kept import CURVE

# The names of the pictures, so that nothing else is removed before a new drawing.
_PICTURES = (
    *("mlp_numpy", "mlp_deep", "cnn_report"),
    *("ninety_one", "changes", "activations", "batch_sizes"),
)
_OVER_SEEDS = "mean and standard deviation over seeds"


def remove_figures(folder: Path) -> None:
    """Removes only the pictures of `draw_figures` from a folder."""
    for name in _PICTURES:
        (folder / f"{name}.png").unlink(missing_ok=True)


def draw_figures(runs: Runs, folder: Path, seen: Mapping[int, float]) -> Iterable[pages.Block]:
    """Draws the figures that the runs allow.

    Args:
        runs: by arm and seed.
        folder: the folder for the pictures.
        seen: by step, the share of images in the report's CNN evaluations that were trained before.
    """
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
    figure, (left, right) = plots.panels(2, f"{title}, {_OVER_SEEDS}")
    plots.band(left, _all(runs, arm, "train/loss"), "loss of training batches", color=plots.BLUE)
    plots.band(right, _all(runs, arm, CURVE), "accuracy on the test set", color=plots.RED)
    plots.band(
        right, _all(runs, arm, "train/acc"), "accuracy on training batches", color=plots.BLUE
    )
    left.set(xlabel=plots.STEPS, ylabel=plots.LOSS)
    right.set(xlabel=plots.STEPS, ylabel=plots.ACCURACY)
    plots.legend(figure)
    plots.save(figure, folder / f"{arm}.png")
    caption = f"{title}: {_OVER_SEEDS}, `{arm}`."
    return pages.Figure(folder / f"{arm}.png", caption)


def _ninety_one(runs: Runs, folder: Path, seen: Mapping[int, float]) -> pages.Figure | None:
    """The same weights on the author's train stream and on the test set."""
    if not _all(runs, "cnn_report", "val/acc"):
        return None
    title = "Where 91 % came from: the same weights of a CNN, evaluated on two sets of images"
    figure, (*axes, share) = plots.panels(3, title)
    titles = {"cnn_report": "the CNN as its author built it", "cnn": "the CNN as specified"}
    for ax, (arm, title) in zip(axes, titles.items(), strict=True):
        stream, test = _all(runs, arm, "val/acc"), _all(runs, arm, CURVE)
        plots.band(ax, stream, "his evaluation: training stream", color=plots.BLUE, marker="o")
        plots.band(ax, test, "test set", color=plots.RED, marker="s")
        ax.set(xlabel=plots.STEPS, ylabel=plots.ACCURACY, title=title, ylim=(0, 1.02))
    share.plot(*zip(*seen.items(), strict=True), color="black", ls="--", marker=".")
    share.set(xlabel=plots.STEPS, ylabel="share of images trained before", ylim=(0, 1.02))
    share.set_title("the images of his evaluation")
    plots.legend(figure)
    plots.save(figure, folder / "ninety_one.png")
    caption = (
        "The author's script evaluates on images from the training stream. The plot on the right "
        "shows the share of these images that were trained before: "
        + ", ".join(f"{share:.1%} at {step}" for step, share in seen.items() if step % 1000 == 0)
        + " (his order of images at seed 42, replayed without a network)."
    )
    return pages.Figure(folder / "ninety_one.png", caption)


def _changes(runs: Runs, folder: Path) -> pages.Figure | None:
    """The effect of each change to the best MLP on its test accuracy."""
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
    figure, (ax,) = plots.panels(1, "Changes to the best MLP: what each does to its test accuracy")
    figure.set_size_inches(8, 1 + 0.32 * len(rows))
    for position, (mean, found, _) in enumerate(rows):
        bars = [[mean - found.low], [found.high - mean]]
        ax.errorbar([mean], [position], xerr=bars, fmt="o", color=plots.BLUE, capsize=3)
    ax.axvline(0, color="black", linewidth=1)
    ax.set_yticks(range(len(rows)), [name for *_, name in rows])
    ax.invert_yaxis()
    ax.set(xlabel="test accuracy minus that of mlp_deep (share of images), 95 % interval")
    plots.save(figure, folder / "changes.png")
    caption = (
        "Each change to `mlp_deep`, in pairs of the same seed, with 95 % intervals. An interval is "
        f"for its change alone: of {len(rows)}, one may miss the true difference by chance."
    )
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
    figure, axes = plots.panels(
        3, f"Activations of the hidden layers of the best MLP\n{_OVER_SEEDS}"
    )
    colors = {"mlp_deep": plots.BLUE, "tanh": plots.ORANGE, "relu": plots.GREEN}
    for ax, (kind, label) in zip(axes, panels.items(), strict=True):
        for arm, color in colors.items():
            for last, style in ((False, "--"), (True, "-")):
                layers = _layers(runs, arm, kind, last)
                weights = "trained" if last else "initial"
                name = f"{'elu' if arm == 'mlp_deep' else arm}, {weights} weights"
                plots.band(ax, layers, name, color=color, ls=style, marker="o", markersize=3)
        ax.set(xlabel="hidden layer", ylabel=label, xticks=range(1, 6))
    plots.legend(figure)
    plots.save(figure, folder / "activations.png")
    caption = f"Tanh against ELU (section 2.2) and ReLU: {_OVER_SEEDS}."
    return pages.Figure(folder / "activations.png", caption)


def _layers(runs: Runs, arm: str, kind: str, last: bool) -> list[dict[int, float]]:
    """A figure of the activations by layer, one mapping for each run, before or after training."""
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
    title = f"Test accuracy after two epochs by batch size\n{_OVER_SEEDS}"
    figure, (ax,) = plots.panels(1, title)
    for (norm, curves), style in zip(found.items(), plots.STYLES, strict=False):
        plots.band(ax, curves, f"{norm} normalisation", marker="o", **style)
    ax.set(xlabel="batch size (images)", ylabel=plots.ACCURACY, xscale="log")
    ax.set_xticks(BATCH_SIZES, [str(size) for size in BATCH_SIZES])
    ax.minorticks_off()
    plots.legend(figure)
    plots.save(figure, folder / "batch_sizes.png")
    caption = (
        "The network of `mlp_deep` with SGD and momentum for two epochs, and a learning rate in "
        f"proportion to the batch size (section 3.3): {_OVER_SEEDS}."
    )
    return pages.Figure(folder / "batch_sizes.png", caption)


def _at(runs: Runs, arm: str, seed: int) -> float | None:
    return values(runs, arm).get(seed)
