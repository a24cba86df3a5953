"""Reproduces the report: runs its claims through the command line and writes the verdicts.

    python reproduce.py --budget quick           # the MLP's claims, three seeds
    python reproduce.py --budget full            # all claims, ten seeds; three for the CNNs
    python reproduce.py --only adam schedule     # some claims
    python reproduce.py --list                   # all claims
    python reproduce.py --budget full --output docs   # adds the runs that the page in docs/ lacks
    python reproduce.py --rejudge docs           # the page in docs/ again, from the runs kept there
    python reproduce.py --rejudge docs --seeds 5      # the verdicts of its first seeds, no page

A run that exists, or that the page of --output keeps, is not repeated; an interrupted run is
resumed. Other arguments, such as ``--data.data_dir FOLDER``, are passed to every ``cli.py fit``.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from experiments.command_line.config_files import expand_home, use_utf8
from experiments.errors import OneLineParser, ended_plainly, fail
from experiments.identity import written_out
from experiments.reproduction.claims import Claim, claims_named
from experiments.reproduction.judges import Runs, first_seeds
from experiments.reproduction.kept import (
    Kept,
    Written,
    data_of,
    keep,
    kept_or_none,
    merged,
    read_kept,
)
from experiments.reproduction.page import write_page
from experiments.reproduction.runner import BUDGETS, Runner, find_runs, share_seen
from experiments.texts import printable

_TITLE = "The report's claims, reproduced"


def main(args: list[str] | None = None) -> None:
    """Runs the claims and writes the page.

    Args:
        args: arguments without the program's name; default: the arguments of the process.
    """
    use_utf8()
    options, passed = parser().parse_known_args(args)
    try:
        if passed and not passed[0].startswith("-"):
            raise ValueError(f"{passed[0]!r} is no option; name claims after --only")
        passed = written_out(passed)
        claims = claims_named(options.only)
        _check(options, passed)
    except ValueError as error:
        fail(error)
    if options.list:
        for claim in claims:
            number = f" ({claim.number})" if claim.number else ""
            print(f"{claim.key:22} {claim.section:4} {claim.text}{number}")
    elif options.rejudge:
        _rejudge(options.rejudge, claims, options.seeds)
    else:
        _run(options, passed, claims)


def _run(options: argparse.Namespace, passed: list[str], claims: list[Claim]) -> None:
    from cli import main as fit  # noqa: PLC0415 - imports torch, which takes seconds

    folder = options.output or options.runs_dir
    kept = options.kept
    runner = Runner(fit, options.runs_dir, options.budget, options.seeds, passed, kept.runs)
    failed = runner.run_all(claims)
    found = find_runs(options.runs_dir)
    if kept.runs:  # another folder may hold more runs than this command asked for
        asked = {(arm.name, seed) for arm, seed in runner.todo(claims)}
        found = {
            arm: {seed: run for seed, run in runs.items() if (arm, seed) in asked}
            for arm, runs in found.items()
        }
    runs, added = merged(kept.runs, found)
    today = datetime.now(UTC).date().isoformat()
    command = " ".join(_command(options, passed))
    written = Written(command, today, runner.seeds_in_words(), added)
    history = (*kept.history, *([written] if added else []))
    keep(Kept(runs, kept.intro, history), folder)
    _write(folder, claims)
    if failed:
        sys.exit(f"error: {len(failed)} runs failed: {', '.join(failed)}")


def _command(options: argparse.Namespace, passed: list[str]) -> list[str]:
    """The command that makes these runs, without the paths of this machine."""
    words = ["python reproduce.py", "--budget", options.budget]
    words += ["--only", *options.only] if options.only else []
    words += ["--seeds", str(options.seeds)] if options.seeds is not None else []
    return [*words, *(word for word in passed if "data_dir" not in word)]


def _write(folder: Path, claims: list[Claim]) -> None:
    """Writes the page, and prints the verdicts on the given claims."""
    try:
        runs = write_page(folder, _TITLE, share_seen())
    except ValueError as error:
        sys.exit(printable(f"error: {error}"))
    _print(claims, runs)
    print(printable(f"page: {folder / 'reproduction.html'}"))


def _rejudge(folder: Path, claims: list[Claim], seeds: int | None) -> None:
    """Judges the runs of a page again; with a number of seeds, only prints the verdicts."""
    if seeds is None:
        _write(folder, claims)
        return
    try:
        kept = read_kept(folder).runs
    except ValueError as error:
        sys.exit(printable(f"error: {error}"))
    _print(claims, first_seeds(kept, seeds))


def _print(claims: list[Claim], runs: Runs) -> None:
    for claim in claims:
        judged = claim.judge.judge(runs)
        print(f"{claim.key:22} {judged.verdict:20} {judged.ours}")


def parser() -> argparse.ArgumentParser:
    """The options; unknown arguments are passed to every fit."""
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="CLAIM", help="some claims only"
    )
    parser.add_argument("--seeds", type=int, help="seeds 0 to N - 1 for every experiment")
    parser.add_argument("--budget", choices=BUDGETS, help="default: quick")
    parser.add_argument("--runs_dir", type=expand_home, help="default: runs/reproduce")
    parser.add_argument(
        "--output",
        type=expand_home,
        help="folder of the page; default: --runs_dir. Runs are added to a page that is there",
    )
    parser.add_argument(
        "--rejudge",
        type=expand_home,
        metavar="FOLDER",
        help="run nothing: judge the runs of a page again; with --seeds, write no page",
    )
    parser.add_argument("--list", action="store_true", help="show the claims, run nothing")
    return parser


def _check(options: argparse.Namespace, passed: list[str]) -> None:
    if options.seeds is not None and options.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {options.seeds}")
    if options.rejudge and (passed or options.output or options.budget):
        raise ValueError(
            "--rejudge runs nothing: pass it the folder of a page, and only --only and --seeds"
        )
    for argument in passed:
        if argument.startswith("-") and not argument.startswith(("--data", "--trainer")):
            raise ValueError(f"unknown option {argument}; see python reproduce.py --help")
    options.budget = options.budget or "quick"
    options.runs_dir = (options.runs_dir or Path("runs/reproduce")).resolve()
    options.output = options.output and options.output.resolve()
    data_of(options.rejudge or options.output or options.runs_dir)
    options.kept = kept_or_none(options.output) if options.output else Kept()


if __name__ == "__main__":
    with ended_plainly():
        main()
