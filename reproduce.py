"""Reproduces the report: runs its claims through the command line and writes what holds.

    python reproduce.py --budget quick           # the MLP's claims, three seeds
    python reproduce.py --budget full            # all claims, five seeds; three for the CNNs
    python reproduce.py --only adam schedule     # some claims
    python reproduce.py --list                   # what there is
    python reproduce.py --rejudge docs           # the page in docs/ again, from the runs kept there

A run that exists is not run again, one that was interrupted goes on. Other arguments go to every
``cli.py fit``, as ``--data.data_dir FOLDER``.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import yaml

from cli import main as cli_main
from datamodules.course import CourseOrder
from experiments.config_files import expand_home, use_utf8
from experiments.environment import circumstances
from experiments.identity import flags_of, flat_key, not_as_asked
from experiments.reproduction.arms import ARMS, Arm
from experiments.reproduction.claims import CLAIMS, Claim, claims_named
from experiments.reproduction.judges import diverged
from experiments.reproduction.kept import data_of, keep
from experiments.reproduction.page import write_page
from experiments.runs import Run, flat, read_run
from experiments.texts import printable

PROJECT = Path(__file__).resolve().parent
BUDGETS = {"quick": (3, 0), "full": (5, 3)}  # seeds of an experiment, and of a slow one
_IMAGES, _BATCH, _STEPS, _EVERY, _SEED = 50_000, 32, 5_000, 500, 42  # of the author's CNN


def main(args: list[str] | None = None) -> None:
    """Runs what is asked for and writes the page.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    use_utf8()
    options, passed = parser().parse_known_args(args)
    try:
        passed = _written_out(passed)
        claims = claims_named(options.only)
        _check(options, passed)
    except ValueError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        raise SystemExit(2) from error
    if options.list:
        for claim in claims:
            number = f" ({claim.number})" if claim.number else ""
            print(f"{claim.key:22} {claim.section:4} {claim.text}{number}")
        return
    if options.rejudge:
        _write(options.rejudge, claims)
        return
    failed = run_all(claims, options, passed)
    folder = options.output or options.runs_dir
    runs = find_runs(options.runs_dir)
    keep(runs, folder, _intro(options, passed, runs))
    _write(folder, claims)
    if failed:
        sys.exit(f"error: {len(failed)} runs failed: {', '.join(failed)}")


def _write(folder: Path, claims: list[Claim]) -> None:
    """Writes the page, and prints what the claims asked for come to."""
    try:
        runs = write_page(folder, _TITLE, seen())
    except ValueError as error:
        sys.exit(printable(f"error: {error}"))
    for claim in claims:
        judged = claim.judge.judge(runs)
        print(f"{claim.key:22} {judged.verdict:14} {judged.ours}")
    print(printable(f"page: {folder / 'reproduction.html'}"))


_TITLE = "The report's claims, reproduced"


def parser() -> argparse.ArgumentParser:
    """The options; what it does not know goes to every fit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="CLAIM", help="some claims only"
    )
    parser.add_argument("--seeds", type=int, help="seeds 0 to N - 1 for every experiment")
    parser.add_argument("--budget", choices=BUDGETS, default="quick")
    parser.add_argument("--runs_dir", type=expand_home, default=Path("runs/reproduce"))
    parser.add_argument(
        "--output", type=expand_home, help="folder of the page; default: --runs_dir"
    )
    parser.add_argument(
        "--rejudge",
        type=expand_home,
        metavar="FOLDER",
        help="run nothing: judge the runs of a page again",
    )
    parser.add_argument("--list", action="store_true", help="show the claims, run nothing")
    return parser


def _written_out(passed: list[str]) -> list[str]:
    """Writes ``--key value`` as ``--key=value``."""
    if passed and not passed[0].startswith("-"):
        raise ValueError(f"{passed[0]!r} is no option; claims come after --only")
    return [f"--{key}={value}" for key, value in flags_of(passed)]


def _check(options: argparse.Namespace, passed: list[str]) -> None:
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    if options.rejudge and (passed or options.output or options.seeds):
        raise ValueError("--rejudge runs nothing, in the folder of a page: --only goes with it")
    for argument in passed:
        if argument.startswith("-") and not argument.startswith(("--data", "--trainer")):
            raise ValueError(f"unknown option {argument}; see python reproduce.py --help")
    options.runs_dir = options.runs_dir.resolve()
    options.output = options.output and options.output.resolve()
    data_of(options.rejudge or options.output or options.runs_dir)


def seeds_of(arm: Arm, options: argparse.Namespace) -> range:
    """The seeds that an experiment is run with."""
    if options.seeds is not None:
        return range(options.seeds)
    quick, slow = BUDGETS[options.budget]
    return range(slow if arm.slow else quick)


def run_all(claims: list[Claim], options: argparse.Namespace, passed: list[str]) -> list[str]:
    """Runs what the claims need and is not there; returns the names of runs that failed."""
    names = dict.fromkeys(name for claim in claims for name in claim.arms)
    # Seed by seed: an early stop leaves something of every claim.
    arms = [arm for arm in ARMS.values() if arm.name in names]
    todo = [(arm, seed) for seed in range(100) for arm in arms if seed in seeds_of(arm, options)]
    failed = []
    for done, (arm, seed) in enumerate(todo, 1):
        started = time.perf_counter()
        run, is_new = ensure(arm, seed, options.runs_dir, passed)
        accuracy = run.value("test/acc")
        if run.status != "finished" and not diverged(run):
            failed.append(run.name)
        if is_new:
            result = f"test {accuracy:.4f}" if accuracy is not None else run.note or run.status
            seconds = time.perf_counter() - started
            line = f"[{done}/{len(todo)}] {run.name}: {result}, {seconds:.0f} s"
            print(printable(line), flush=True)
    return failed


def ensure(arm: Arm, seed: int, root: Path, passed: list[str]) -> tuple[Run, bool]:
    """Runs an experiment with a seed unless its run is there, whole and of the same configuration.

    Returns:
        The run, and whether anything was run.

    Raises:
        SystemExit: if a finished run of another configuration is in the way.
    """
    path = root / f"{arm.name}-s{seed}"
    run = read_run(path)
    differs = _differs(arm, seed, run, passed)
    fits = run.status != "unreadable" and not differs
    if differs and run.status == "finished":
        message = (
            f"error: {path} is a run with other settings ({'; '.join(differs)}): "
            "take another --runs_dir, or delete it"
        )
        print(printable(message), file=sys.stderr)
        raise SystemExit(2)
    is_over = run.status == "finished" and run.value("test/acc") is not None
    if fits and (is_over or diverged(run)):
        return run, False
    arguments = [
        "fit",
        *arm.arguments(Path(os.path.relpath(PROJECT))),
        f"--seed_everything={seed}",
        f"--name={path.name}",
        f"--runs_dir={root}",
        "--test_after_fit=true",
        "--trainer.enable_model_summary=false",
        f"--trainer.logger.group={arm.name}",
        "--trainer.logger.job_type=reproduce",
        f"--trainer.logger.tags=[{', '.join(_claims_of(arm))}]",
        *passed,
    ]
    if run.status == "unreadable" and path.exists():
        print(printable(f"{path}: {run.note}: run again"), file=sys.stderr)
    resumed = fits and _fit([*arguments, "--resume=true"])
    if not resumed and not _fit([*arguments, f"--overwrite={str(path.exists()).lower()}"]):
        raise SystemExit(2)  # the error has been said; it would be that of every run
    run = read_run(path)
    if run.status in {"interrupted", "preempted"}:
        _say_how_to_go_on()
        raise SystemExit(128 + signal.SIGINT)
    return run, True


def _say_how_to_go_on() -> None:
    print("the same python reproduce.py goes on where it was left", file=sys.stderr)


def _claims_of(arm: Arm) -> list[str]:
    return [claim.key for claim in CLAIMS if arm.name in claim.arms]


def _fit(arguments: list[str]) -> bool:
    """Runs ``cli.py`` as from a shell; returns whether it could start."""
    with mock.patch.object(sys, "argv", ["cli.py", *arguments]), _quiet():
        try:
            cli_main()
        except SystemExit as stop:
            if stop.code == 2:
                return False
            if isinstance(stop.code, int) and stop.code > 128:
                _say_how_to_go_on()
                raise  # a signal: everything stops
            print(printable(str(stop.code)), file=sys.stderr)
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the closing table of each run out of the output; its record has all of it."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _differs(arm: Arm, seed: int, run: Run, passed: list[str]) -> list[str]:
    """In what a run's configuration is not what the experiment's files and flags say."""
    asked: dict[str, object] = {}
    for name in arm.configs:
        asked |= flat(
            yaml.safe_load((PROJECT / f"configs/{name}.yaml").read_text(encoding="utf-8"))
        )
    flags = flags_of([*arm.flags, *passed])
    asked |= {flat_key(key): yaml.safe_load(value) for key, value in flags}
    return not_as_asked(run.config, {**asked, "seed_everything": seed})


def find_runs(root: Path) -> dict[str, dict[int, Run]]:
    """The runs of the experiments that are there, by arm and seed."""
    found: dict[str, dict[int, Run]] = {}
    for name in ARMS:
        paths = sorted(root.glob(f"{name}-s*"))
        runs = {seed: read_run(path) for path in paths if (seed := _seed(path, name)) is not None}
        found[name] = dict(sorted(runs.items()))
    return found


def _seed(path: Path, name: str) -> int | None:
    digits = path.name.removeprefix(f"{name}-s")
    return int(digits) if digits.isdecimal() else None


def seen() -> dict[int, float]:
    """Share of the images of the author's evaluations that had been trained on, by step."""
    order = CourseOrder.draw(_IMAGES, _BATCH, _STEPS, _EVERY, _SEED)
    return {_EVERY * count: share for count, share in enumerate(order.seen(), 1)}


def _intro(
    options: argparse.Namespace, passed: list[str], runs: dict[str, dict[int, Run]]
) -> list[str]:
    now = circumstances()
    versions = ", ".join(f"{name} {version}" for name, version in now["versions"].items())
    machine = now["hardware"]
    gpus = ", ".join(machine["gpus"]) or "no GPU"
    words = ["python reproduce.py", "--budget", options.budget]
    words += ["--only", *options.only] if options.only else []
    words += ["--seeds", str(options.seeds)] if options.seeds is not None else []
    command = " ".join([*words, *(word for word in passed if "data_dir" not in word)])
    return [
        *_on_other_data(runs),
        f"Written by `{command}` on {now['date']}. Every network is trained on all 50,000 training "
        "images for a fixed number of steps, and its last weights are tested on the official "
        "10,000 test images: nothing is selected on them. Rates are the report's, but for those of "
        "the batch-size experiments, chosen on validation. The figures' test curves are measured "
        "along the way and nothing is chosen by them.",
        f"{machine['cpu']}, {machine['threads']} threads, {gpus}; {versions}.",
    ]


def _on_other_data(runs: dict[str, dict[int, Run]]) -> list[str]:
    """A warning where runs are not on CIFAR-10, or not on all of it."""
    found = [run for arm in runs.values() for run in arm.values() if run.fields.get("data")]
    other = sum(run.fields["data"] != "cifar10" for run in found)
    if not other:
        return []
    return [
        f"Warning: {other} of {len(found)} runs are not on CIFAR-10 but on generated images: their "
        "figures and verdicts say nothing about the report, whatever stands below."
    ]


if __name__ == "__main__":
    main()
