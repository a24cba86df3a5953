"""Which run ``--resume`` means, whether anything is left to do, and that one process does it."""

import re
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from datamodules.cifar10 import say
from experiments.record import CONFIG, LOCK, RECORD, RunError, RunRecord, experiment_name
from experiments.runs import CIRCUMSTANCES, flat_config, read_run

_LIMITS = ("trainer.max_steps", "trainer.max_epochs")
_ALL_LIMITS = "|".join(map(re.escape, (*_LIMITS, "trainer.max_time"))) + r"(\.\w+)?"
_WITHOUT_EFFECT = re.compile(rf"{CIRCUMSTANCES}|{_ALL_LIMITS}")


def choose_run(root: Path, name: str, seed: int) -> str | None:
    """Finds the newest unfinished run of the same experiment and seed, where none is named.

    Args:
        root: the folder of all runs.
        name: of the experiment (see `experiments.naming.experiment_of`).
        seed: the seed of everything.

    Returns:
        The run's name; None if there is none, and a new one is to begin.
    """
    found = []
    for path in root.glob(f"{name}-*/{RECORD}"):
        if experiment_name(path.parent.name) not in {name, f"{name}-synthetic"}:
            continue
        run = read_run(path.parent)
        same = run.fields.get("seed") == seed
        if same and run.fields.get("job_type") == "fit" and run.fields.get("status") != "finished":
            found.append((str(run.fields.get("started")), run.name))
    if not found:
        say(f"no unfinished run of {name} with seed {seed} in {root}: a new one")
        return None
    return max(found)[1]


def config_before(record: RunRecord) -> dict[str, Any]:
    """The configuration that a run had until now, flat; empty if it had not written it yet.

    Raises:
        RunError: if it is there and can't be read.
    """
    try:
        return flat_config(record.path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:
        path = record.path / CONFIG
        raise RunError(
            f"{path} can't be read, so that what changes could not be said: mend or remove it"
        ) from error


def is_finished(record: RunRecord, before: dict[str, Any], config: dict[str, Any]) -> bool:
    """Whether a run is over, and neither a longer training nor a missing test is asked for.

    Args:
        record: the run's record.
        before: the configuration that it had, flat.
        config: the one asked for, flat.
    """
    if record.fields.get("status") != "finished":
        return False
    longer = any(before.get(name) != config.get(name) for name in _LIMITS)
    untested = config["test_after_fit"] and "test/acc" not in record.summary
    if longer or untested:
        return False
    say(f"run {record.name} is finished; to train it longer, raise --trainer.max_steps")
    return True


def note_changes(before: dict[str, Any], config: dict[str, Any]) -> None:
    """Tells in what a run that goes on differs from what it was: it ends as neither would."""
    changed = [
        f"{name} {config.get(name)} (was {before[name]})"
        for name in sorted(before)
        if before[name] != config.get(name) and not _WITHOUT_EFFECT.fullmatch(name)
    ]
    if changed:
        say(f"the run goes on with other settings: {', '.join(changed)}")


class RunLock:
    """Keeps a second process from training the same run; the system frees it with the process.

    Args:
        path: the run's folder.

    Raises:
        RunError: if another process trains this run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = FileLock(path / LOCK)
        if path.is_dir():
            self.acquire()
            self.release()

    def acquire(self) -> None:
        """Takes the lock, in a folder that exists.

        Raises:
            RunError: if another process has it.
        """
        try:
            self._file.acquire(timeout=0)
        except Timeout as error:  # an OSError too: it must come first
            raise RunError(
                f"run {self.path.name} is being trained by another process; wait for it, or take "
                "another --name"
            ) from error
        except (OSError, NotImplementedError):
            pass  # a file system without locks

    def release(self) -> None:
        """Lets others train the run."""
        self._file.release()
