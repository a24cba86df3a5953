"""Time until the page of `compare` is there, and for a sort, a search and a filter, in Chromium.

    python -m benchmarks.compare_page --runs 1000

Makes runs with twenty settings and curves of fifty points, builds the page of them, opens it in a
headless Chromium of this system, and measures in the page itself: from the start of the navigation
until table and charts are drawn, and from an action until the browser has painted its effect. On a
busy machine, the processor time of the page's thread says more than these.
"""

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from experiments import compare
from experiments.records.machine import hardware, machine_name

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CLASSES = [f"class {number}" for number in range(10)]
_PAINTED = "new Promise((done) => requestAnimationFrame(() => setTimeout(done)))"
_SET = """(id, value, event) => {
    const element = document.getElementById(id);
    element.value = value;
    element.dispatchEvent(new Event(event));
}"""
ACTIONS = {
    "sort": "document.querySelectorAll('#table-box thead th')[4].click()",
    "search": f"({_SET})('search', 'batch', 'input')",
    "search for nothing": f"({_SET})('search', '', 'input')",
    "filter": f"({_SET})('filter-key', 'test/acc', 'change'), ({_SET})('filter-how', '>', 'change')"
    f", ({_SET})('filter-value', '0.4', 'input'), document.querySelector('#filter button').click()",
    "a line for each run": f"({_SET})('group', 'run', 'change')",
    "sort of the lines of runs": "document.querySelectorAll('#table-box thead th')[1].click()",
}


def chromium() -> str | None:
    """The path of this system's Chromium; None if there is none."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


def make_runs(folder: Path, count: int, points: int = 50, seeds: int = 5) -> None:
    """Writes made runs.

    Args:
        folder: for the folders of the runs.
        count: number of runs.
        points: of each curve.
        seeds: runs of one experiment.
    """
    dice = random.Random(0)
    for number in range(count):
        if number % seeds == 0:
            settings = _settings(dice, points)
        name = f"made-{number // seeds}-s{number % seeds}"
        _write(folder / name, {**settings, "seed_everything": number % seeds}, dice, points)


def _settings(dice: random.Random, points: int) -> dict[str, Any]:
    patience = dice.choice([None, 1, 3])
    stopping = "pytorch_lightning.callbacks.EarlyStopping"
    arguments = {"monitor": "val/acc", "patience": patience}
    callbacks = [{"class_path": stopping, "init_args": arguments}] if patience else []
    optimizer = {
        "class_path": "torch.optim.Adam",
        "init_args": {
            "lr": round(10 ** dice.uniform(-4, -1), 7),
            "weight_decay": dice.choice([0, 1e-3]),
        },
    }
    network = {
        "norm": dice.choice(["none", "batch", "layer"]),
        "activation": dice.choice(["elu", "relu"]),
        "hidden_units": dice.choice([[100], [200, 100]]),
        "num_classes": 10,
        "label_smoothing": 0.0,
        "optimizer": optimizer,
    }
    return {
        "trainer": {
            "max_steps": points * 100,
            "callbacks": callbacks,
            "precision": None,
            "log_every_n_steps": 20,
            "accumulate_grad_batches": 1,
            "gradient_clip_val": None,
        },
        "model": {"class_path": "lightning_modules.MLP", "init_args": network},
        "data": {
            "class_path": "datamodules.CIFAR10DataModule",
            "init_args": {"batch_size": 200, "val_size": 5000, "crop": 0, "flip": "none"},
        },
    }


def _write(folder: Path, config: dict[str, Any], dice: random.Random, points: int) -> None:
    network = config["model"]["init_args"]
    best = 0.3 + 0.03 * math.log10(network["optimizer"]["init_args"]["lr"] / 1e-5)
    best += {"none": 0, "batch": 0.05, "layer": 0.03}[network["norm"]] + dice.gauss(0, 0.01)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    entries = "".join(_entries(best, dice, points))
    (folder / "metrics.jsonl").write_text(entries, encoding="utf-8")
    record = {
        "name": folder.name,
        "status": "finished",
        "seed": config["seed_everything"],
        "data": "cifar10",
        "parameters": 308_310,
        "images": {"train": 45_000, "val": 5_000, "test": 10_000},
        "hardware": {"cpu": "made", "threads": 2, "gpus": []},
        "summary": {
            "val/acc": best,
            "test/acc": best - 0.002,
            "train/steps": points * 100,
            "train/seconds": 100 + dice.random(),
            "train/flops": 3.1e14,
        },
    }
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    counts = [
        [round(1000 * (best if i == j else (1 - best) / 9)) for j in range(10)] for i in range(10)
    ]
    matrix = {"classes": _CLASSES, "counts": counts}
    (folder / "confusion_test.json").write_text(json.dumps(matrix), encoding="utf-8")


def _entries(best: float, dice: random.Random, points: int) -> Iterator[str]:
    for point in range(1, points + 1):
        acc = best * (1 - math.exp(-4 * point / points)) + dice.gauss(0, 0.004)
        at = {"step": point * 100, "seconds": round(point * 1.3 + dice.random(), 3)}
        yield json.dumps({**at, "val/acc": acc, "val/loss": 2.3 - 2 * acc}) + "\n"
        yield json.dumps({**at, "train/acc": acc + 0.02, "train/loss": 2.2 - 2 * acc}) + "\n"


def measure(page: Path) -> dict[str, float]:
    """Milliseconds until the page is there, and for each action.

    Args:
        page: the file.

    Raises:
        RuntimeError: if there is no Chromium.
    """
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - only to measure

    if (path := chromium()) is None:
        raise RuntimeError("no Chromium found; install one: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        counters = tab.context.new_cdp_session(tab)
        counters.send("Performance.enable", {"timeDomain": "threadTicks"})
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready]", state="attached")
        metrics = counters.send("Performance.getMetrics")["metrics"]
        used = next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")
        found = {
            f"until the first {mark}": tab.evaluate(
                f"performance.getEntriesByName('{mark}')[0].startTime"
            )
            for mark in ("table", "charts")
        }
        found["of processor time until then"] = used * 1000
        for name, action in ACTIONS.items():
            tab.wait_for_timeout(300)
            found[name] = tab.evaluate(
                "async () => { const start = performance.now();"
                f"{action}; await {_PAINTED}; return performance.now() - start; }}"
            )
        browser.close()
    return found


def main(args: list[str] | None = None) -> None:
    """Makes the runs, measures and prints.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--points", type=int, default=50)
    options = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        runs, page = Path(folder) / "runs", Path(folder) / "page.html"
        make_runs(runs, options.runs, options.points)
        started = time.perf_counter()
        compare.main([f"--runs_dir={runs}", "--format=html", f"--output={page}"])
        seconds = time.perf_counter() - started
        print(
            f"{options.runs} runs: built in {seconds:.1f} s, {page.stat().st_size / 2**20:.1f} MiB"
        )
        for name, milliseconds in measure(page).items():
            print(f"{milliseconds:7.0f} ms  {name}")
    print(f"on {machine_name(hardware())}")


if __name__ == "__main__":
    main()
