"""Makes the runs for the report's claims through the command line, each only once."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from datamodules.course import CourseOrder
from experiments.errors import fail
from experiments.identity import flags_of, flat_key, setting_mismatches
from experiments.records.runs import Run, flat, read_run
from experiments.reproduction.arms import ARMS, Arm
from experiments.reproduction.claims import CLAIMS, Claim
from experiments.reproduction.judges import Runs, diverged
from experiments.reproduction.kept import command_differences, is_over
from experiments.texts import printable

PROJECT = Path(__file__).resolve().parents[2]
BUDGETS = {"quick": (3, 0), "full": (10, 3)}  # number of seeds of an experiment, and of a slow one
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
        kept: runs that a page keeps; those that are over are not made again.
    """

    fit: Callable[[], None]
    root: Path
    budget: str
    seeds: int | None
    passed: Sequence[str]
    kept: Runs = field(default_factory=dict)

    def seeds_of(self, arm: Arm) -> range:
        """The seeds of an experiment."""
        if self.seeds is not None:
            return range(self.seeds)
        quick, slow = BUDGETS[self.budget]
        return range(slow if arm.slow else quick)

    def seeds_in_words(self) -> str:
        """The number of seeds, for the page: ``10 seeds, 3 for the CNNs``."""
        if self.seeds is not None:
            return f"{self.seeds} seed{'' if self.seeds == 1 else 's'}"
        quick, slow = BUDGETS[self.budget]
        return f"{quick} seeds, {slow or 'none'} for the CNNs"

    def todo(self, claims: Sequence[Claim]) -> list[tuple[Arm, int]]:
        """The runs that claims need, seed by seed: an early stop leaves some for every claim."""
        names = dict.fromkeys(name for claim in claims for name in claim.arms)
        arms = [arm for arm in ARMS.values() if arm.name in names]
        return [(arm, seed) for seed in range(100) for arm in arms if seed in self.seeds_of(arm)]

    def run_all(self, claims: Sequence[Claim]) -> list[str]:
        """Makes the missing runs of claims; returns the names of failed runs.

        Raises:
            SystemExit: if another run has the name, or a run could not start or was interrupted.
        """
        todo = self.todo(claims)
        for arm, seed in todo:
            self._check_kept(arm, seed)  # before anything is made
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
        if kept := self._kept(arm, seed):
            return kept, False
        path = self.root / f"{arm.name}-s{seed}"
        run = read_run(path)
        differs = self._differs(arm, seed, run)
        if differs and run.status == "finished":
            fail(
                f"{path} is a run with other settings ({'; '.join(differs)}): "
                "take another --runs_dir, or delete it"
            )
        fits = run.status != "unreadable" and not differs
        if fits and is_over(run):
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

    def _kept(self, arm: Arm, seed: int) -> Run | None:
        run = self.kept.get(arm.name, {}).get(seed)
        return run if run and is_over(run) else None

    def _check_kept(self, arm: Arm, seed: int) -> None:
        run = self._kept(arm, seed)
        differs = run and command_differences(run, self._arguments(arm, seed, Path()))
        if run and differs:
            fail(
                f"the page keeps {run.name}, a run of another command "
                f"({'; '.join(differs)}): take another --output"
            )

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
