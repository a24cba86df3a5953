"""Makes the runs for the report's claims through the command line, each only once."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from datamodules.course import CourseOrder
from experiments.identity import flags_of, flat_key, setting_mismatches
from experiments.records.environment import environment_fields
from experiments.records.runs import Run, flat, read_run
from experiments.reproduction.arms import ARMS, Arm
from experiments.reproduction.claims import CLAIMS, Claim
from experiments.reproduction.judges import Runs, diverged
from experiments.texts import printable

PROJECT = Path(__file__).resolve().parents[2]
BUDGETS = {"quick": (3, 0), "full": (5, 3)}  # number of seeds of an experiment, and of a slow one
_IMAGES, _BATCH, _STEPS, _EVERY, _SEED = 50_000, 32, 5_000, 500, 42  # of the author's CNN


@dataclass(frozen=True)
class Runner:
    """Runs experiments over seeds.

    Attributes:
        fit: ``cli.main``.
        root: the folder of the runs.
        budget: a key of `BUDGETS`, for the number of seeds.
        seeds: number of seeds of every experiment, instead of the budget's.
        passed: more flags for every fit, each as ``--key=value``.
    """

    fit: Callable[[], None]
    root: Path
    budget: str
    seeds: int | None
    passed: Sequence[str]

    def seeds_of(self, arm: Arm) -> range:
        """The seeds of an experiment."""
        if self.seeds is not None:
            return range(self.seeds)
        quick, slow = BUDGETS[self.budget]
        return range(slow if arm.slow else quick)

    def run_all(self, claims: Sequence[Claim]) -> list[str]:
        """Makes the missing runs of claims; returns the names of failed runs.

        Raises:
            SystemExit: if another run has the name, or a run could not start or was interrupted.
        """
        names = dict.fromkeys(name for claim in claims for name in claim.arms)
        # Seed by seed, so that an early stop leaves some runs for every claim.
        arms = [arm for arm in ARMS.values() if arm.name in names]
        todo = [(arm, seed) for seed in range(100) for arm in arms if seed in self.seeds_of(arm)]
        failed = []
        for done, (arm, seed) in enumerate(todo, 1):
            started = time.perf_counter()
            run, is_new = self.ensure(arm, seed)
            accuracy = run.value("test/acc")
            if run.status != "finished" and not diverged(run):
                failed.append(run.name)
            if is_new:
                result = f"test {accuracy:.4f}" if accuracy is not None else run.note or run.status
                seconds = time.perf_counter() - started
                line = f"[{done}/{len(todo)}] {run.name}: {result}, {seconds:.0f} s"
                print(printable(line), flush=True)
        return failed

    def ensure(self, arm: Arm, seed: int) -> tuple[Run, bool]:
        """Runs an experiment with a seed unless a complete run with its settings exists.

        Returns:
            The run, and whether it was made now.

        Raises:
            SystemExit: if a finished run with other settings has the name.
        """
        path = self.root / f"{arm.name}-s{seed}"
        run = read_run(path)
        differs = self._differs(arm, seed, run)
        if differs and run.status == "finished":
            message = (
                f"error: {path} is a run with other settings ({'; '.join(differs)}): "
                "take another --runs_dir, or delete it"
            )
            print(printable(message), file=sys.stderr)
            raise SystemExit(2)
        fits = run.status != "unreadable" and not differs
        is_over = run.status == "finished" and run.value("test/acc") is not None
        if fits and (is_over or diverged(run)):
            return run, False
        if run.status == "unreadable" and path.exists():
            print(printable(f"{path}: {run.note}: run again"), file=sys.stderr)
        arguments = self._arguments(arm, seed, path)
        resumed = fits and self._fit([*arguments, "--resume=true"])
        overwrite = f"--overwrite={str(path.exists()).lower()}"
        if not resumed and not self._fit([*arguments, overwrite]):
            raise SystemExit(2)  # the error is printed already; every run would have it
        run = read_run(path)
        if run.status in {"interrupted", "preempted"}:
            _say_how_to_go_on()
            raise SystemExit(128 + signal.SIGINT)
        return run, True

    def _arguments(self, arm: Arm, seed: int, path: Path) -> list[str]:
        claims = [claim.key for claim in CLAIMS if arm.name in claim.arms]
        return [
            "fit",
            *arm.arguments(Path(os.path.relpath(PROJECT))),
            f"--seed_everything={seed}",
            f"--name={path.name}",
            f"--runs_dir={self.root}",
            "--test_after_fit=true",
            "--trainer.enable_model_summary=false",
            f"--trainer.logger.group={arm.name}",
            "--trainer.logger.job_type=reproduce",
            f"--trainer.logger.tags=[{', '.join(claims)}]",
            *self.passed,
        ]

    def _differs(self, arm: Arm, seed: int, run: Run) -> list[str]:
        """The settings of a run that differ from the files and flags of the experiment."""
        asked: dict[str, object] = {}
        for name in arm.configs:
            text = (PROJECT / f"configs/{name}.yaml").read_text(encoding="utf-8")
            asked |= flat(yaml.safe_load(text))
        flags = flags_of([*arm.flags, *self.passed])
        asked |= {flat_key(key): yaml.safe_load(value) for key, value in flags}
        return setting_mismatches(run.config, {**asked, "seed_everything": seed})

    def _fit(self, arguments: list[str]) -> bool:
        """Runs ``cli.py`` as a shell would; returns whether it could start."""
        with _command(["cli.py", *arguments]), _quiet():
            try:
                self.fit()
            except SystemExit as stop:
                if stop.code == 2:
                    return False
                if isinstance(stop.code, int) and stop.code > 128:
                    _say_how_to_go_on()
                    raise  # a signal: everything stops
                print(printable(str(stop.code)), file=sys.stderr)
        return True


@contextlib.contextmanager
def _command(words: list[str]) -> Iterator[None]:
    """Sets ``sys.argv`` to another command: Lightning starts further processes from it."""
    before, sys.argv = sys.argv, words
    try:
        yield
    finally:
        sys.argv = before


def _say_how_to_go_on() -> None:
    print("to continue, run the same command again", file=sys.stderr)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the final table of each run; its record has the same values."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def find_runs(root: Path) -> dict[str, dict[int, Run]]:
    """The existing runs of the experiments, by arm and seed."""
    found: dict[str, dict[int, Run]] = {}
    for name in ARMS:
        paths = sorted(root.glob(f"{name}-s*"))
        runs = {seed: read_run(path) for path in paths if (seed := _seed(path, name)) is not None}
        found[name] = dict(sorted(runs.items()))
    return found


def _seed(path: Path, name: str) -> int | None:
    digits = path.name.removeprefix(f"{name}-s")
    return int(digits) if digits.isdecimal() else None


def share_seen() -> dict[int, float]:
    """By step, the share of images in the author's evaluations that were trained before."""
    order = CourseOrder.draw(_IMAGES, _BATCH, _STEPS, _EVERY, _SEED)
    return {_EVERY * count: share for count, share in enumerate(order.seen(), 1)}


_PROTOCOL = (
    "Every network is trained on all 50,000 training images for a fixed number of steps. Its last "
    "weights are tested on the official 10,000 test images; nothing is selected on them. Learning "
    "rates are those of the report; only the batch-size experiments have others, which were chosen "
    "on validation images. The test curves in the figures are measured during the training, and "
    "nothing is chosen by them."
)


def intro(command: Sequence[str], runs: Runs) -> list[str]:
    """The first paragraphs of a page: command, date and machine of its runs.

    Args:
        command: the words of the command.
        runs: by arm and seed.
    """
    now = environment_fields()
    versions = ", ".join(f"{name} {version}" for name, version in now["versions"].items())
    machine = now["hardware"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    return [
        *_on_other_data(runs),
        f"Written by `{' '.join(command)}` on {now['date']}. {_PROTOCOL}",
        f"{machine['cpu']}, {machine['threads']} threads, {gpus}; {versions}.",
    ]


def _on_other_data(runs: Runs) -> list[str]:
    """A warning if runs are not on CIFAR-10, or only on a part of it."""
    found = [run for arm in runs.values() for run in arm.values() if run.fields.get("data")]
    other = sum(run.fields["data"] != "cifar10" for run in found)
    if not other:
        return []
    return [
        f"Warning: {other} of {len(found)} runs are not on CIFAR-10 but on other images: their "
        "figures and verdicts say nothing about the report."
    ]
