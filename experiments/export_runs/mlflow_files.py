"""Writes runs as a database of MLflow, ``mlflow.db``: its folder ``mlruns`` is given up there."""

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.export_runs.common import (
    facts_of,
    final_numbers,
    flat_facts,
    labels_of,
    last_step,
    library,
    logged,
    settings_of,
    start_of,
    surroundings,
)
from experiments.records.runs import Run
from experiments.sources.foreign import as_text
from experiments.sources.mlflow_runs import STATUSES

PACKAGE = "mlflow-skinny sqlalchemy alembic"
_NOT_ALLOWED = re.compile(r"[^\w. :/-]")  # in the name of a metric or a parameter
_LONGEST_KEY = 250
_LONGEST_PARAMETER = 6_000
_LONGEST_TAG = 8_000
_MOST_AT_ONCE = {"metrics": 1_000, "params": 100, "tags": 100}


def write_mlflow(runs: Sequence[Run], folder: Path, project: str) -> list[str]:
    """Writes ``mlflow.db`` with an experiment.

    Args:
        runs: the runs.
        folder: an empty folder; its files will lie in the folder above, as artifacts would.
        project: the name of MLflow's experiment.

    Returns:
        What was left out, in one line each.

    Raises:
        TargetError: without MLflow.
    """
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRUNCATE_LONG_VALUES": "false"}
    place = folder.absolute().parent
    with surroundings("MLFLOW_", place, **quiet):
        library("sqlalchemy", PACKAGE)
        tracking = library("mlflow.tracking", PACKAGE)
        entities = library("mlflow.entities", PACKAGE)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        client = tracking.MlflowClient(f"sqlite:///{folder.absolute()}/mlflow.db")
        experiment = client.create_experiment(
            project, artifact_location=(place / "mlartifacts").as_uri()
        )
        return [note for run in runs for note in _write(client, entities, experiment, run)]


def _write(client: Any, entities: Any, experiment: str, run: Run) -> Iterator[str]:
    """Writes a run, and yields what was left out of it."""
    began = start_of(run)
    written = client.create_run(experiment, start_time=_ms(began), run_name=run.name)
    points, end = [], began
    for step, seconds, numbers in logged(run):
        end = max(end, began + (seconds or 0))
        points += [
            entities.Metric(_key(k), float(v), _ms(began + (seconds or 0)), step)
            for k, v in numbers.items()
        ]
    last = last_step(run)
    points += [
        entities.Metric(_key(k), float(v), _ms(end), last) for k, v in final_numbers(run).items()
    ]
    settings = {_key(key): as_text(value) for key, value in settings_of(run).items()}
    parameters = {k: v for k, v in settings.items() if len(v) <= _LONGEST_PARAMETER}
    tags = {k: v for k, v in _tags(run).items() if len(v) <= _LONGEST_TAG}
    params = [entities.Param(key, value) for key, value in parameters.items()]
    labels = [entities.RunTag(key, value) for key, value in tags.items()]
    for kind, values in (("metrics", points), ("params", params), ("tags", labels)):
        most = _MOST_AT_ONCE[kind]
        for first in range(0, len(values), most):
            client.log_batch(written.info.run_id, **{kind: values[first : first + most]})
    client.set_terminated(written.info.run_id, _status(run), _ms(end))
    for key in [*settings.keys() - parameters, *_tags(run).keys() - tags]:
        yield f"{run.name}: {key} is longer than MLflow keeps, and left out"


def _tags(run: Run) -> Mapping[str, str]:
    labels = labels_of(run)
    found = {key: labels[key] for key in ("group", "job_type") if labels[key]}
    found |= {"tags": ", ".join(labels["tags"])} if labels["tags"] else {}
    found |= {"mlflow.note.content": labels["notes"]} if labels["notes"] else {}
    return found | {_key(key): as_text(value) for key, value in flat_facts(facts_of(run)).items()}


def _status(run: Run) -> str:
    """The status in MLflow's words; the exact one is a tag."""
    words = {status: word for word, status in STATUSES.items()}
    return words.get(run.status, "KILLED" if run.status in {"preempted", "crashed"} else "FINISHED")


def _key(name: str) -> str:
    return _NOT_ALLOWED.sub("_", name)[:_LONGEST_KEY]


def _ms(seconds: float) -> int:
    return round((seconds or time.time()) * 1000)
