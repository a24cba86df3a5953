"""Searches flags on validation, without a server or an account: ``python cli.py sweep FILE``.

    python cli.py sweep configs/sweeps/claims_grid.yaml
    python cli.py sweep FILE --count 20 --jobs 2 --trainer.max_steps 500
    python cli.py sweep FILE --test_winner      # the test set, once

FILE is the file of a W&B sweep: a grid, a random or a Bayesian search over flags of ``fit``, each
point with every seed of ``seed_everything``. A point is judged by the mean of its metric over the
seeds, at the best validation of each run. With ``early_terminate``, weak points stop early:
successive halving, by the validations of the first seed. Other arguments are passed to every fit.

The runs are in a folder with the name of the file. The same command goes on with a search that was
stopped, and finds more points if --count is larger. At its end, the runs are compared.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

try:
    import optuna
except ModuleNotFoundError:
    print("error: a sweep needs Optuna: pip install optuna", file=sys.stderr)
    raise SystemExit(2) from None

from filelock import FileLock, Timeout
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial, TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from experiments import compare
from experiments.command_line.config_files import expand_home, use_utf8
from experiments.errors import OneLineParser, RunError, fail
from experiments.identity import (
    as_flag,
    experiment_of,
    experiment_settings,
    flags_of,
    flat_key,
    kind_of,
    setting_mismatches,
    written_out,
)
from experiments.process.signals import Phase, Stopped, StopSignals
from experiments.records.curves import CHOSEN_BY
from experiments.records.files import remove_folder, writing
from experiments.records.reader import parse_yaml
from experiments.records.record import RECORD
from experiments.records.runs import Run, flat, read_run
from experiments.texts import printable
from experiments.tuning.commands import CHECK, RUN, run_command
from experiments.tuning.sweep_file import Sweep, check_flags, grid_size, read_sweep

_STUDY = "sweep.db"
_LOGS = "logs"
_FAILED = "failed"  # marks a point that has no value, as after a training that diverged
_USAGE_ERROR = 2  # the status of a command that could not start
_SHOWN = 10  # lines of the comparison
# What may change when a search goes on: the number of points; words, whose meaning is in `config`.
_MAY_CHANGE = {"count": None, "words": None}


class Pruning:
    """Tells whether a point is too weak to go on.

    Args:
        trial: the point.
        path: the folder of its run.
        metric: what it is judged by.

    Attributes:
        seen: number of validations so far.
        is_due: whether the point is too weak.
    """

    def __init__(self, trial: Trial, path: Path, metric: str) -> None:
        self._trial = trial
        self._path = path
        self._metric = metric
        self.seen = 0
        self.is_due = False

    def look(self) -> None:
        """Reads the validations since the last call."""
        values = [*read_run(self._path).curve(self._metric).values()]
        for value in values[self.seen :] if not self.is_due else []:
            self.seen += 1
            self._trial.report(value, self.seen)
            self.is_due = self.is_due or self._trial.should_prune()


class Searcher:
    """Trains the points of a sweep, several at once.

    Args:
        sweep: what to search.
        study: Optuna's study, which chooses the points.
        folder: of the runs.
        words: flags for every fit, besides those of the sweep.
        count: number of points in all.
    """

    def __init__(
        self, sweep: Sweep, study: optuna.Study, folder: Path, words: Sequence[str], count: int
    ) -> None:
        self.sweep = sweep
        self.study = study
        self.folder = folder
        self.words = [*sweep.words, *words]
        self.count = count
        self._begun = judged(study)
        self._lock = threading.Lock()
        self._stops, self._kills = threading.Event(), threading.Event()

    def run(self, jobs: int) -> None:
        """Trains what is left.

        Args:
            jobs: number of points that are trained at the same time.

        Raises:
            RunError: for a run that can't start, as with a wrong flag.
            Stopped: if a signal came; the runs have saved themselves.
        """
        with StopSignals() as signals, ThreadPoolExecutor(jobs) as pool:
            signals.phase = Phase.BATCH
            workers = [pool.submit(self._work) for _ in range(jobs)]
            try:
                while wait(workers, 0.2).not_done:
                    if signals.received:
                        self._stops.set()
            except Stopped:  # the second signal
                self._kills.set()
                raise
            signals.check()
        for worker in workers:
            worker.result()

    def _work(self) -> None:
        try:
            while (trial := self._ask()) is not None:
                self._judge(trial)
        except BaseException:
            self._stops.set()  # of the other workers
            raise

    def _ask(self) -> Trial | None:
        """The next point; None if there is none, or the search stops."""
        with self._lock:
            if self._stops.is_set() or self._begun >= self.count:
                return None
            self._begun += 1
            return self.study.ask(dict(self.sweep.space))

    def _judge(self, trial: Trial) -> None:
        """Trains a point with every seed, and tells Optuna its value."""
        started, values = time.perf_counter(), []
        for seed in self.sweep.seeds:
            name = self.name_of(trial.params, seed)
            may_stop = self.sweep.halving is not None and seed == self.sweep.seeds[0]
            pruning = Pruning(trial, self.folder / name, self.sweep.metric) if may_stop else None
            self._fit(trial.params, seed, pruning)
            if self._stops.is_set():
                return  # Optuna keeps it as running: the same command takes it up again
            if pruning is not None and pruning.is_due:
                self.study.tell(trial, state=TrialState.PRUNED)
                self._say(name, f"stopped early after {pruning.seen} validations", started)
                return
            run = read_run(self.folder / name)
            self._check(run, trial.params)
            value = value_of(run, self.sweep.metric)
            if value is None:  # the training diverged
                trial.set_user_attr(_FAILED, True)
                self.study.tell(trial, state=TrialState.FAIL)
                self._say(name, run.note, started)
                return
            values.append(value)
        self.study.tell(trial, fmean(values))
        self._say(self.name_of(trial.params), f"{self.sweep.metric} {mean_of(values)}", started)

    def _check(self, run: Run, parameters: Mapping[str, Any]) -> None:
        """Refuses a run that does not judge a point.

        Raises:
            RunError: if it was killed, or is not of this sweep, or has not been validated.
        """
        asked = {flat_key(k): parse_yaml(str(value)) for k, value in parameters.items()}
        if differs := setting_mismatches(run.config, asked, {}):
            raise RunError(f"{run.path} is another run ({'; '.join(differs)}): move it away")
        if run.status not in {"finished", "failed"}:
            raise RunError(f"{run.name} was stopped ({run.status}): type the same command again")
        if run.status == "finished" and value_of(run, self.sweep.metric) is None:
            raise RunError(f"{run.name} has no {self.sweep.metric}: let it validate, as with "
                           "--trainer.val_check_interval")  # fmt: skip

    def name_of(self, parameters: Mapping[str, Any], seed: int | None = None) -> str:
        """The name of a point, or of its run with a seed."""
        name = f"{self.folder.resolve().name}-{point_name(parameters)}"
        return name if seed is None else f"{name}-s{seed}"

    def _fit(self, parameters: Mapping[str, Any], seed: int, pruning: Pruning | None) -> None:
        """Trains a run, or goes on with it.

        Raises:
            RunError: if it can't start.
        """
        is_told = False

        def signal_for_it() -> int | None:
            nonlocal is_told
            if self._kills.is_set():
                return signal.SIGKILL
            if pruning is not None:
                pruning.look()
            was_told, is_told = is_told, self._stops.is_set() or bool(pruning and pruning.is_due)
            return signal.SIGINT if is_told and not was_told else None

        name = self.name_of(parameters, seed)
        log = self.folder / _LOGS / f"{name}.txt"
        own = [f"--seed_everything={seed}", f"--name={name}", f"--runs_dir={self.folder}"]
        own += ["--resume=true", "--test_after_fit=false"]
        words = ["fit", *self.words, *flags_for(parameters), *own]
        status = run_command(words, log, signal_for_it)
        is_elsewhere = status == 1 and read_run(self.folder / name).status == "running"
        if status == _USAGE_ERROR or is_elsewhere:
            raise RunError(last_line(log))

    def _say(self, name: str, result: str, started: float) -> None:
        with self._lock:
            seconds = time.perf_counter() - started
            line = f"[{judged(self.study)}/{self.count}] {name}: {result}, {seconds:.0f} s"
            print(printable(line), flush=True)


def judged(study: optuna.Study) -> int:
    """The number of points that are over."""
    over = {TrialState.COMPLETE, TrialState.PRUNED}
    trials = study.get_trials(deepcopy=False)
    return sum(trial.state in over or _FAILED in trial.user_attrs for trial in trials)


def flags_for(parameters: Mapping[str, Any]) -> list[str]:
    """The flags of a point."""
    return [f"--{key}={as_flag(value)}" for key, value in parameters.items()]


def point_name(parameters: Mapping[str, Any]) -> str:
    """A name that no other point of a sweep has: its flags, with a hash if they do not tell all."""
    flags = flags_for(parameters)
    name = experiment_of(["fit", *flags])
    told = {key.rpartition(".")[2] for key in parameters if kind_of(flat_key(key)).name}
    is_plain = all(re.fullmatch(r"[\w.+-]+", str(value)) for value in parameters.values())
    if is_plain and len(told) == len(parameters):
        return name
    return f"{name}-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:6]}"


def value_of(run: Run, metric: str) -> float | None:
    """The best value of a metric in a finished run; None for another run, or without a value."""
    step = run.best_step(metric)
    return run.curve(metric)[step] if run.status == "finished" and step is not None else None


def mean_of(values: Sequence[float]) -> str:
    """The mean of some values, with their standard deviation if there are several."""
    spread = f" ± {stdev(values):.4f} ({len(values)} seeds)" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"


def last_line(log: Path) -> str:
    """The last line that a command printed, without ``error:``."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].removeprefix("error: ")


# ---- the study -----------------------------------------------------------------------------------


def open_study(sweep: Sweep, folder: Path, config: str) -> optuna.Study:
    """Opens the study of a folder, or creates it; points that were being trained come again.

    Args:
        sweep: what to search.
        folder: of the runs.
        config: identifies the settings that all points share, see `check_points`.

    Raises:
        RunError: if the folder has the study of another sweep, or runs of none.
    """
    if not (folder / _STUDY).exists() and any(folder.glob(f"*/{RECORD}")):
        raise RunError(f"{folder} has runs of no sweep: name another folder with --runs_dir")
    try:
        study = optuna.create_study(
            storage=URL.create("sqlite", database=str(folder / _STUDY)).render_as_string(),
            study_name="sweep",
            direction="maximize" if sweep.is_maximised else "minimize",
            pruner=_pruner(sweep),
            load_if_exists=True,
        )
    except (SQLAlchemyError, RuntimeError) as error:
        raise RunError(
            f"{folder / _STUDY} can't be used ({str(error).splitlines()[0]}): name another folder "
            "with --runs_dir"
        ) from error
    asked = asdict(sweep) | _MAY_CHANGE
    asked |= {"space": {k: repr(v) for k, v in sweep.space.items()}, "config": config}
    if study.user_attrs.setdefault("sweep", asked) != json.loads(json.dumps(asked)):
        raise RunError(f"{folder} has another sweep: name another folder with --runs_dir")
    study.set_user_attr("sweep", asked)
    before = study.get_trials(deepcopy=False)
    for trial in before:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)
    if sweep.method == "grid" and not before:
        for point in grid(sweep):
            study.enqueue_trial(point)
    # With the same seed again, the search would find the same points again.
    study.sampler = _sampler(sweep, seed=len(before))
    return study


def _pruner(sweep: Sweep) -> optuna.pruners.BasePruner:
    if sweep.halving is None:
        return optuna.pruners.NopPruner()
    first, factor = sweep.halving.first, sweep.halving.factor
    return optuna.pruners.SuccessiveHalvingPruner(first, factor)


def _sampler(sweep: Sweep, seed: int) -> BaseSampler:
    return TPESampler(seed=seed) if sweep.method == "bayes" else RandomSampler(seed)


def grid(sweep: Sweep) -> list[dict[str, Any]]:
    """All points of a grid, the last parameter changing fastest."""
    values = {
        key: kind.choices
        if isinstance(kind, CategoricalDistribution)
        else range(kind.low, kind.high + 1)
        for key, kind in sweep.space.items()
        if isinstance(kind, CategoricalDistribution | IntDistribution)
    }
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


# ---- the command ---------------------------------------------------------------------------------


def main(args: list[str] | None = None) -> None:
    """Searches, and prints a comparison and the winner.

    Args:
        args: arguments without the program's name; default: those of the process.
    """
    use_utf8()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options, passed = parser().parse_known_args(args)
    try:
        _search(options, passed)
    except (RunError, ValueError, OSError) as error:
        fail(str(error))
    except Stopped as stopped:
        print("to go on, type the same command again", file=sys.stderr)
        raise SystemExit(stopped.status) from None


def _search(options: argparse.Namespace, passed: list[str]) -> None:
    sweep = read_sweep(options.file)
    words = _flags(passed)
    count = _count(sweep, options)
    if options.jobs < 1:
        raise ValueError(f"--jobs must be at least 1, got {options.jobs}")
    if options.jobs > 1:  # the jobs share the cores
        threads = max(1, (os.cpu_count() or 1) // options.jobs)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = check_points(sweep, words)
    folder: Path = options.runs_dir or Path("runs") / options.file.stem
    is_new = not folder.exists()
    try:
        with _only_search(folder):
            searcher = Searcher(sweep, open_study(sweep, folder, config), folder, words, count)
            seeds = ", ".join(map(str, sweep.seeds))
            print(
                printable(f"{count} points, each with seeds {seeds}; runs in {folder}"), flush=True
            )
            searcher.run(options.jobs)
            _end(searcher, options)
    except RunError:
        if is_new and not any(folder.glob(f"*/{RECORD}")):
            remove_folder(folder)
        raise


def check_points(sweep: Sweep, words: Sequence[str]) -> str:
    """Checks a fit with every listed value once, before anything is written.

    Args:
        sweep: what to search.
        words: flags for every fit, besides those of the sweep.

    Returns:
        A hash of the settings that all points share.

    Raises:
        RunError: for a wrong flag, or a fit without validation.
    """
    listed = {key: values_of(kind) for key, kind in sweep.space.items()}
    most = max(map(len, listed.values()), default=1)
    for number in range(most):
        point = {key: values[number % len(values)] for key, values in listed.items()}
        fit = ["fit", *sweep.words, *words, *flags_for(point)]
        config = flat(parse_yaml(_output([*fit, "--print_config"])))
        if config.get("data.val_size") == 0:
            raise RunError(
                f"data.val_size is 0, and there is no {sweep.metric}: hold images out, as with "
                "--data.val_size 5000"
            )
        _output(fit, CHECK)
    swept = {flat_key(key) for key in sweep.space}
    shared = {k: v for k, v in experiment_settings(config).items() if k not in swept}
    return hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()


def values_of(kind: BaseDistribution) -> Sequence[Any]:
    """The listed values of a parameter, or both ends of its range."""
    if isinstance(kind, CategoricalDistribution):
        return kind.choices
    assert isinstance(kind, IntDistribution | FloatDistribution)
    return kind.low, kind.high


def _output(words: Sequence[str], what: str = RUN) -> str:
    """What a command prints.

    Raises:
        RunError: if it refuses its flags.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        if run_command(words, log, what=what):
            raise RunError(last_line(log))
        return log.read_text(encoding="utf-8").partition("\n")[2]  # the first line is the command


def _flags(passed: list[str]) -> list[str]:
    """The flags for every fit, as ``--key=value``."""
    if passed and not passed[0].startswith("-"):
        raise ValueError(f"{passed[0]!r} is no option; name one file")
    check_flags(key for key, _ in flags_of(passed))
    return written_out(passed)


def _count(sweep: Sweep, options: argparse.Namespace) -> int:
    count = options.count or sweep.count
    if options.count is not None and options.count < 1:
        raise ValueError(f"--count must be at least 1, got {options.count}")
    if sweep.method != "grid":
        if count is None:
            raise ValueError(f"{sweep.method} search: give the number of points with --count")
        return int(count)
    whole = grid_size(sweep.space)
    return min(count, whole) if count else whole


@contextlib.contextmanager
def _only_search(folder: Path) -> Iterator[None]:
    """Makes the folder, and refuses a second search in it at the same time."""
    with writing(folder, "name another folder with --runs_dir"):
        (folder / _LOGS).mkdir(parents=True, exist_ok=True)
    for entry in (folder / _LOGS, *folder.glob(f"{_STUDY}*"), *(folder / _LOGS).iterdir()):
        if entry.is_symlink():
            raise RunError(f"{entry} is a symbolic link: remove it")
    lock = FileLock(folder / f"{_STUDY}.lock", blocking=False)
    try:
        with lock:
            yield
    except Timeout:
        raise RunError(f"another process searches in {folder}: wait for it") from None


def _end(searcher: Searcher, options: argparse.Namespace) -> None:
    """Compares the runs, and names or tests the winner."""
    sweep, folder = searcher.sweep, searcher.folder
    found = [t for t in searcher.study.trials if t.state == TrialState.COMPLETE]
    if not found:
        raise RunError(f"no point has a {sweep.metric}: see {folder / _LOGS}")
    best = searcher.study.best_trial
    names = [searcher.name_of(best.params, seed) for seed in sweep.seeds]
    if options.test_winner:
        _test(searcher, names)
    metric = f"best/{CHOSEN_BY}" if sweep.metric == CHOSEN_BY else sweep.metric
    print(flush=True)
    compare.main([str(folder), "--metric", metric, "--top", str(_SHOWN)])
    runs = [read_run(folder / name) for name in names]
    values = [value for run in runs if (value := value_of(run, sweep.metric)) is not None]
    print(printable(f"winner: {searcher.name_of(best.params)}: {sweep.metric} {mean_of(values)}"))
    print(printable(f"flags:  {shlex.join(flags_for(best.params))}"))
    tested = [value for run in runs if (value := run.value("test/acc")) is not None]
    if tested:
        print(f"test:   accuracy {mean_of(tested)}; the test set has chosen nothing")
    else:
        print("test:   type the same command with --test_winner: once, at the end of the search")


def _test(searcher: Searcher, names: Sequence[str]) -> None:
    """Tests the runs of the winner that are not tested yet."""
    folder = searcher.folder
    others = {path.parent.name for path in folder.glob(f"*/{RECORD}")} - {*names}
    if any(read_run(folder / name).value("test/acc") is not None for name in others):
        print("warning: another point was tested before; the test set is not for choosing",
              file=sys.stderr)  # fmt: skip
    for name in names:
        if read_run(folder / name).value("test/acc") is None:
            log = folder / _LOGS / f"{name}.txt"
            words = ["test", f"--name={name}", f"--runs_dir={folder}"]
            if run_command(words, log):
                raise RunError(last_line(log))


def parser() -> argparse.ArgumentParser:
    """The options; others are those of ``fit``."""
    found = OneLineParser(
        prog="cli.py sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("file", type=expand_home, help="the sweep, a YAML file")
    found.add_argument("--count", type=int, help="points in all; default: run_cap, or the grid")
    found.add_argument("--jobs", type=int, default=1, help="points trained at the same time")
    found.add_argument("--runs_dir", type=expand_home, help="default: runs/, and the file's name")
    found.add_argument("--test_winner", action="store_true", help="test the best point, once")
    return found


if __name__ == "__main__":
    main()
