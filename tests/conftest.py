"""Small data and short runs that every test shares; nothing here needs a network or CIFAR-10."""

import dataclasses
import functools
import gc
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos import PICTURES, Zygote, draw_a_dot, sync_nothing

# The process that hands out the tests need not wait for the command line, which takes seconds to
# import: functions here import it themselves.
if TYPE_CHECKING:
    from datamodules.files import OfficialSet
    from experiments.records.record import RunRecord
    from tests.lab import Lab

# Before torch is imported: on tiny tensors and a busy machine, threads wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until all tests are imported: nothing of it becomes garbage

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = 200  # in each of the six files of the small synthetic set

# A fit of a few steps on the small set, on the CPU, without W&B.
SHORT = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
]
Cli = Callable[..., "RunRecord"]


def mark_slow(cases: Iterable[Any], except_for: Container[Any] = ()) -> list[Any]:
    """Marks cases of a parametrized test slow, except for those of the default suite."""

    def slow(case: Any) -> Any:
        values = case if isinstance(case, tuple) else (case,)
        return pytest.param(*values, marks=pytest.mark.slow)

    return [case if case in except_for else slow(case) for case in cases]


def pytest_unconfigure() -> None:
    """Removes what the tests have made outside of their own folders."""
    shutil.rmtree(_STATE, ignore_errors=True)


def pytest_collection_finish() -> None:
    """Has the garbage collector look through what the tests make, not what they import."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir that holds a small synthetic set."""
    from datamodules.sources import make_synthetic

    root = tmp_path_factory.mktemp("data")
    make_synthetic(root, IMAGES)
    return root


_STATE = Path(tempfile.mkdtemp(prefix="cifar10-state-"))  # in place of the user's own


def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(_STATE))
    for name in [*os.environ]:
        if name.startswith(("WANDB_", "CIFAR10_", "CIFAR100_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CIFAR10_CALIBRATION", "off")  # it takes a second
    monkeypatch.setattr(sys, "argv", ["cli.py"])  # Lightning warns of pytest's own arguments
    monkeypatch.setattr(os, "fsync", sync_nothing)


@pytest.fixture(scope="session", autouse=True)
def clean_session() -> Iterator[None]:
    """What `clean_environment` does for a test, for fixtures that many tests share."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _forget(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test sees the user's data, accounts or W&B settings, or what another test set."""
    _forget(monkeypatch)
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw nothing, which takes half of their time, unless the test asks for it."""
    if "pictures" not in request.keywords:
        draw_nothing(monkeypatch)


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every picture be a dot."""
    for picture in PICTURES:
        monkeypatch.setattr(f"experiments.analysis.plots.{picture}", draw_a_dot)


def passing_for(folder: Path, official: "OfficialSet") -> "OfficialSet":
    """The description of a data set whose official files are those of a folder."""
    found = {name: (folder / name).read_bytes() for name in official.sha256}
    sha256 = {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}
    sizes = {name: len(content) for name, content in found.items()}
    return dataclasses.replace(official, sha256=sha256, sizes=sizes)


def with_archive(content: bytes, official: "OfficialSet") -> "OfficialSet":
    """The description of a data set whose official archive has this content."""
    sha256 = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(official, archive_sha256=sha256, archive_bytes=len(content))


def small(data_dir: Path) -> list[str]:
    """Arguments that select the small synthetic set and batches that suit it."""
    return [
        "--data.source=synthetic",
        f"--data.data_dir={data_dir}",
        f"--data.synthetic_images={IMAGES}",
        "--data.batch_size=50",
        "--data.val_size=100",
    ]


@pytest.fixture
def synthetic(data_dir: Path) -> list[str]:
    """Arguments that select the small synthetic set and batches that suit it."""
    return small(data_dir)


def short_fit(
    runs: Path, data_dir: Path, *args: str, name: str = "run", wandb: bool = False
) -> "RunRecord":
    """Runs a short ``fit`` through the real command line and returns its record."""
    logger = [] if wandb else ["--trainer.logger=false"]
    places = [f"--runs_dir={runs}", f"--name={name}"]
    return run_cli(["fit", *SHORT, *small(data_dir), *logger, *places, *args], runs / name)


def run_cli(args: list[str], run: Path) -> "RunRecord":
    """Runs the real command line in this process and returns the record of a run."""
    from cli import main
    from experiments.records.record import RunRecord

    main(args)
    return RunRecord.open(run)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where `fit` and `evaluate` keep their runs."""
    return tmp_path / "runs"


@pytest.fixture
def fit(runs: Path, data_dir: Path) -> Cli:
    """`short_fit` into this test's own folder."""
    return functools.partial(short_fit, runs, data_dir)


@pytest.fixture
def evaluate(runs: Path) -> Cli:
    """Runs validate, test or predict on a named run and returns its record."""

    def run(command: str, *args: str, name: str = "run") -> "RunRecord":
        return run_cli([command, f"--runs_dir={runs}", f"--name={name}", *args], runs / name)

    return run


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """Runs arguments that must fail; returns the one line after ``error: ``."""

    def run(args: list[str]) -> str:
        from cli import main

        with pytest.raises(SystemExit) as failure:
            main(args)
        assert failure.value.code == 2
        *before, last = capsys.readouterr().err.splitlines()
        assert last.startswith("error: ")
        assert not [line for line in before if "rror" in line or line.startswith("Traceback")]
        return last.removeprefix("error: ")

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs ``python cli.py ...`` in a process of its own, as a user does."""

    def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(PROJECT / "cli.py"), *args],
            cwd=tmp_path,
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Runs commands in processes of their own, without the seconds of an import."""
    started = Zygote()
    yield started
    started.close()


@pytest.fixture(scope="session")
def labs(
    zygote: Zygote, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> "dict[str, Lab]":
    """For each kind of training, a lab in which it has run undisturbed as ``whole``."""
    from tests.lab import LONG, MODELS, WITH_CALLBACKS, Lab

    class Labs(dict[str, "Lab"]):
        def __missing__(self, kind: str) -> Lab:
            lab = Lab(
                zygote,
                tmp_path_factory.mktemp(kind),
                [*(MODELS | WITH_CALLBACKS)[kind], *small(data_dir), *LONG],
            )
            ended = lab.fit("whole")
            assert ended.code == 0, ended.err
            self[kind] = lab
            return lab

    return Labs()
