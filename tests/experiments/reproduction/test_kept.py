"""Runs that a page keeps, and runs that are added to them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.records.runs import Run
from experiments.reproduction.arms import ARMS
from experiments.reproduction.introduction import introduction
from experiments.reproduction.kept import (
    Kept,
    Written,
    command_differences,
    keep,
    kept_or_none,
    merged,
    read_kept,
)
from tests.conftest import PROJECT


def run(seed: int, accuracy: float | None = 0.5, **fields: Any) -> Run:
    fields = {"seed": seed, "data": "cifar10", "summary": {"test/acc": accuracy}, **fields}
    return Run(f"mlp-s{seed}", Path("x"), "finished", fields)


def test_what_is_kept_again_stays_the_same(tmp_path: Path) -> None:
    kept = read_kept(PROJECT / "docs")
    keep(kept, tmp_path)
    again = read_kept(tmp_path)
    assert (again.intro, again.history) == (kept.intro, kept.history)
    ours, theirs = (
        json.loads((folder / "reproduction/runs.json").read_text())["runs"]
        for folder in (tmp_path, PROJECT / "docs")
    )
    assert ours == theirs


def test_a_figure_of_a_part_of_the_images_is_not_kept(tmp_path: Path) -> None:
    part = run(0, images={"train": 100, "test": 10})
    part.summary.update({"train/acc": 0.3, "train/images": 50})
    part.entries.append({"step": 4, "train/acc": 0.3, "val/acc": 0.2})
    keep(Kept({"mlp": {0: part}}), tmp_path)
    again = read_kept(tmp_path).runs["mlp"][0]
    figures = [again.value(key) for key in ("test/acc", "train/acc", "val/acc", "train/acc@4")]
    assert figures == [0.5, None, 0.2, 0.3]


def test_a_page_without_a_history_is_read(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docs/reproduction", tmp_path / "reproduction")
    path = tmp_path / "reproduction/runs.json"
    content = json.loads(path.read_text())
    del content["history"]
    path.write_text(json.dumps({**content, "intro": ["Written once upon a time."]}))
    kept = read_kept(tmp_path)
    assert (kept.intro, kept.history) == (("Written once upon a time.",), ())
    assert "Written by" not in " ".join(introduction(kept))


@pytest.mark.parametrize(
    "entry",
    [5, {}, {"command": "x", "date": "x", "seeds": "x", "added": "1"}, {"command": 1}],
)
def test_a_history_of_another_kind_is_one_line(entry: object, tmp_path: Path) -> None:
    (tmp_path / "reproduction").mkdir()
    content = {"intro": [], "history": [entry], "runs": []}
    (tmp_path / "reproduction/runs.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"runs\.json is no file of kept runs"):
        read_kept(tmp_path)


def test_a_folder_without_a_page_keeps_nothing(tmp_path: Path) -> None:
    assert kept_or_none(tmp_path) == Kept()


def test_a_run_that_is_over_stays_and_others_are_added() -> None:
    unfinished = replace(run(1, None), status="interrupted")
    diverged = replace(run(2, None), status="failed", note="FloatingPointError('nan')")
    kept = {"mlp": {0: run(0, 0.4), 1: unfinished, 2: diverged, 3: unfinished}}
    found = {"mlp": {seed: run(seed, 0.6) for seed in (0, 1, 2, 5)}}
    runs, added = merged(kept, found)
    assert runs.keys() == ARMS.keys()
    accuracies = {seed: one.value("test/acc") for seed, one in runs["mlp"].items()}
    assert accuracies == {0: 0.4, 1: 0.6, 2: None, 3: None, 5: 0.6}
    assert list(accuracies) == sorted(accuracies)
    assert added == 2


ASKED = [
    "fit",
    "--config=../here/configs/mlp.yaml",
    "--config=../here/configs/ablations/protocol.yaml",
    "--seed_everything=0",
    "--name=mlp-s0",
    "--trainer.logger.tags=[now]",
    "--data.data_dir=/elsewhere",
    "--data.download=false",
]
COMMAND = (
    "cli.py fit --config=configs/mlp.yaml --config=configs/ablations/protocol.yaml "
    "--seed_everything=0 --name=mlp-s0 --trainer.logger.tags='[then, now]'"
)


@pytest.mark.parametrize(
    ("command", "more", "differs"),
    [
        (COMMAND, [], []),
        (COMMAND, ["--model.lr=0.1"], ["model.optimizer.lr None, asked for 0.1"]),
        (f"{COMMAND} --model.lr 0.2", ["--model.init_args.optimizer.init_args.lr=0.2"], []),
        (f"{COMMAND} --data.seed=3", [], ["data.seed 3, asked for None"]),
        (f"{COMMAND} --data.source=synthetic", [], ["data.source synthetic, asked for None"]),
        (
            COMMAND.replace("mlp.yaml", "cnn.yaml"),
            [],
            ["config cnn.yaml ablations/protocol.yaml, asked for mlp.yaml ablations/protocol.yaml"],
        ),
        ("cli.py 'fit", [], ["its command can't be read"]),
        ("cli.py fit --a 1 2", [], ["its command can't be read"]),
    ],
)
def test_commands_differ_in_what_makes_another_experiment(
    command: str, more: list[str], differs: list[str]
) -> None:
    assert command_differences(run(0, command=command), [*ASKED, *more]) == differs


def test_the_introduction_counts_commands_days_and_machines() -> None:
    old = {"cpu": "AMD EPYC", "threads": 2, "gpus": []}
    new = {**old, "instructions": "AVX512", "calibration": {"fp32_gflops": 777}, "strange": [1]}
    gpu = {"gpus": ["NVIDIA H100"], "cores": 16}
    machines = [(old, "24"), (old, "24"), (new, "27"), (gpu, "27"), ({}, "27")]
    runs = {
        seed: run(seed, 0.5 + seed / 100, hardware=hardware, started=f"2026-11-{day}T10:00:00")
        for seed, (hardware, day) in enumerate(machines)
    }
    more = {0: run(0, 0.6), 1: run(1, 0.61)}
    history = (
        Written("python reproduce.py --budget full", "2026-11-24", "5 seeds", 2),
        Written("python reproduce.py --seeds 9", "2026-11-27", "9 seeds", 5),
    )
    text = introduction(Kept({"mlp": runs, "relu": more}, ("By hand.",), history))
    assert text[0].startswith(
        "Written by `python reproduce.py --budget full` on 2026-11-24 (5 seeds; 2 runs), then by "
        "`python reproduce.py --seeds 9` on 2026-11-27 (9 seeds; 5 runs). Every network is trained"
    )
    assert text[1] == "By hand."
    days = "2 runs on 2026-11-24; 3 runs on 2026-11-27; 2 runs on an unknown day"
    assert text[2].startswith(f"Started: {days}. Machines: ")
    for words in (
        "2 runs on AMD EPYC, 2 cores, no GPU;",
        "1 run on AMD EPYC, 2 cores, AVX512, no GPU;",
        "1 run on 16 cores, NVIDIA H100;",
        "3 runs on an unknown machine.",
    ):
        assert words in text[2]
    assert "777" not in text[2]
    assert "One test set is used for 2 experiments." in text[3]
    assert "(0.56 standard errors) over seeds" in text[3]
