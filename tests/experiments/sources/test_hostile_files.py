"""Files that are broken or that somebody made to harm: each is a line, never a traceback."""

import json
import os
import re
import shutil
import sqlite3
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from experiments.records.runs import Run
from experiments.sources import databases, foreign
from experiments.sources.find import CompareError, find_runs
from tests.experiments.sources.test_foreign_tools import unpacked

EVIL = "\x1b[31m=1+1<b>\n"
BOMB = "\n".join(
    ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
)


def read(place: Path) -> list[Run]:
    return find_runs([str(place)], Path("runs"), 2e9)


def only(place: Path) -> Run:
    (run,) = read(place)
    return run


# ---- CSV -----------------------------------------------------------------------------------------


def csv_run(folder: Path, content: str | bytes, settings: str = "") -> Run:
    folder = folder / "version_0"
    folder.mkdir()
    content = content.encode() if isinstance(content, str) else content
    (folder / "metrics.csv").write_bytes(content)
    if settings:
        (folder / "hparams.yaml").write_text(settings)
    return only(folder)


def test_a_csv_with_quotes_a_mark_and_spaces(tmp_path: Path) -> None:
    run = csv_run(tmp_path, '\ufeff"val_acc", step ,"a\nb"\r\n"0.5",10,\r\n0.75,20.0,x\r\n')
    assert (run.status, run.note) == ("unknown", "")
    assert run.curve("val_acc") == {10: 0.5, 20: 0.75}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("", "metrics.csv can't be read: it is empty"),
        ("\n\n", "metrics.csv can't be read: it is empty"),
        ("step,a\n1," + "9" * 200_000 + "\n", "field larger than field limit"),
        ("step,a\n1," + "9" * 2_000_000 + "\n", "it has a line of more than 1,048,576 bytes"),
        ('step,a\n1,"x\n', "unexpected end of data"),
        ("step," + ",".join(map(str, range(10_001))), "more than 10,000 columns"),
    ],
)
def test_a_csv_that_cant_be_read_is_a_line(content: str, note: str, tmp_path: Path) -> None:
    run = csv_run(tmp_path, content)
    assert run.status == "unreadable"
    assert note in run.note


def test_odd_lines_of_a_csv_are_counted(tmp_path: Path) -> None:
    run = csv_run(tmp_path, b"step,a,b\n1,0.5\n2,0.6,1,7\nx,0.7,1\n\n3,nan,\xff\n3,,2\n")
    assert run.note == "2 of 5 lines of metrics.csv have another number of cells"
    assert run.curve("a") == {1: 0.5, 2: 0.6}
    assert run.curve("b") == {2: 1.0, 3: 2.0}


def test_a_csv_without_steps_has_final_values_alone(tmp_path: Path) -> None:
    run = csv_run(tmp_path, "a,b\n1,2\n3,4\n")
    assert run.note == "metrics.csv has no column step: its curves are left out"
    assert (run.value("a"), run.value("b"), run.curve("a")) == (3, 4, {})


def test_two_files_of_one_folder_are_two_runs(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("step,val_acc\n1,0.5\n")
    found = find_runs([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], tmp_path, 2e9)
    assert [run.name for run in found] == ["a.csv", "b.csv"]


def test_epochs_count_if_nothing_else_does(tmp_path: Path) -> None:
    assert csv_run(tmp_path, "epoch,a\n0,1\n1,2\n").curve("a") == {0: 1, 1: 2}


@pytest.mark.parametrize(
    ("settings", "note"),
    [
        (
            "a: !!python/object/apply:os.system ['touch hacked']",
            "could not determine a constructor",
        ),
        (BOMB, "more than 10,000 values"),
        ("- a", "no configuration"),
    ],
)
def test_settings_that_cant_be_read_are_left_out(
    settings: str, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = csv_run(tmp_path, "step,a\n1,2\n", settings)
    assert (run.status, run.config, run.value("a")) == ("unknown", {}, 2)
    assert run.note.startswith("hparams.yaml can't be read: ") and note in run.note
    assert run.note.endswith("its settings are left out")
    assert not (tmp_path / "hacked").exists()


def test_the_config_of_the_lightning_cli_is_the_settings(tmp_path: Path) -> None:
    (tmp_path / "hparams.yaml").write_text("lr: 1\n")
    (tmp_path / "config.yaml").write_text(
        "seed_everything: 3\nmodel: {class_path: my.Net, init_args: {lr: 1}}\n"
    )
    (tmp_path / "metrics.csv").write_text("step,a\n1,2\n")
    run = only(tmp_path)
    assert (run.seed, run.config["model"], run.config["model.lr"]) == (3, "my.Net", 1)


# ---- TensorBoard ---------------------------------------------------------------------------------


def settings_event(content: bytes) -> bytes:
    """An event with settings of HPARAMS, which may be anything."""
    plugin = b"\x0a\x07hparams\x12" + bytes([len(content)]) + content
    for key in (0x0A, 0x4A, 0x0A, 0x2A):  # plugin data, metadata, value, summary
        plugin = bytes([key, len(plugin)]) + plugin
    return struct.pack("<Q4x", len(plugin)) + plugin + b"\0" * 4


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """An event file that TensorBoard wrote."""
    pytest.importorskip("tensorboard")
    (path,) = (unpacked("tensorboard", tmp_path) / "run-s0").glob("events*")
    return path


def test_an_event_file_that_was_cut_off_has_a_note(events: Path) -> None:
    os.truncate(events, events.stat().st_size - 5)
    run = only(events.parent)
    assert run.note == f"{events.name} ends within an event"
    assert run.curve("val_acc")


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"", "holds no events yet"),
        (b"no event file", "it is no event file"),
        (struct.pack("<Q", 2**63) + b"\0" * 100, "it is no event file"),
        (struct.pack("<Q4x", 8) + b"\xff" * 12, "event 1 of"),
        (settings_event(b"\xff\xff"), "event 1 of"),
    ],
)
def test_a_file_that_is_no_event_file_is_a_line(events: Path, content: bytes, note: str) -> None:
    events.write_bytes(content)
    run = only(events.parent)
    assert run.status == "unreadable"
    assert note in run.note


def test_too_many_events_are_a_line(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.sources.tensorboard_runs._MOST_EVENTS", 5)
    assert "has more than 5 events" in only(events.parent).note


def test_pictures_are_skipped(events: Path) -> None:
    picture = struct.pack("<Q4x", 2**20) + b"\xff" * (2**20 + 4)
    events.write_bytes(events.read_bytes() + picture)
    run = only(events.parent)
    assert (run.note, run.status) == ("", "unknown")


def test_event_files_that_are_links_are_not_followed(events: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / events.name).symlink_to(events)
    assert only(tmp_path / "linked").note == "its event files can't be read: they are links"


def test_odd_settings_of_tensorboard_are_settings(events: Path) -> None:
    with SummaryWriter(str(events.parent), filename_suffix=".z") as writer:
        odd = {"run.git": "x", "run.git.commit": 5, "run.status": EVIL, "run.seconds": "y"}
        writer.add_hparams(odd, {}, run_name=".")
    run = only(events.parent)
    assert (run.note, run.status, run.fields.get("git")) == ("", EVIL[:20], None)


def test_a_missing_reader_is_a_line(events: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    run = only(events.parent)
    assert (run.status, run.name) == ("unreadable", "run-s0")
    assert run.note == "event files need a reader: pip install tensorboard"


def test_two_loggers_in_one_folder_are_one_run(events: Path) -> None:
    (events.parent / "metrics.csv").write_text("step,val_acc\n10,0.25\n")
    assert only(events.parent).source == "csv"


def test_events_after_a_restart_replace_earlier_ones(events: Path) -> None:
    with SummaryWriter(str(events.parent), purge_step=20, filename_suffix=".z") as writer:
        writer.add_scalar("val_acc", 0.25, 25)
    assert only(events.parent).curve("val_acc") == pytest.approx({10: 0.51, 25: 0.25})


# ---- MLflow --------------------------------------------------------------------------------------


@pytest.fixture
def mlruns(tmp_path: Path) -> Path:
    return unpacked("mlflow-folder", tmp_path) / "mlruns"


def metric_file(mlruns: Path) -> Path:
    return sorted(mlruns.glob("*/*/metrics/val_acc"))[0]


def test_lines_of_a_metric_may_have_two_or_more_words(mlruns: Path) -> None:
    path = metric_file(mlruns)
    path.write_text("1000 0.5\n1000 0.6 4 data abc\nx\n1000 0.7 y\n\n")
    run = only(path.parents[1])
    assert run.curve("val_acc") == {0: 0.5, 4: 0.6}
    assert run.note == "3 of 5 lines of metrics/val_acc can't be read"


def test_a_start_beyond_all_time_is_no_start(mlruns: Path) -> None:
    meta = metric_file(mlruns).parents[1] / "meta.yaml"
    meta.write_text(re.sub("start_time: .*", f"start_time: {'9' * 900}", meta.read_text()))
    run = only(meta.parent)
    assert (run.status, run.fields.get("started")) == ("finished", None)


@pytest.mark.parametrize("content", ["", "run_id: [", "run_id: 1\nstatus: []", BOMB])
def test_a_run_of_mlflow_that_is_broken_is_a_line(content: str, mlruns: Path) -> None:
    folder = metric_file(mlruns).parents[1]
    (folder / "meta.yaml").write_text(content)
    assert sorted(run.status for run in read(mlruns)) == ["finished", "unreadable"]


def test_a_deleted_experiment_is_left_out(mlruns: Path) -> None:
    meta = metric_file(mlruns).parents[2] / "meta.yaml"
    meta.write_text(meta.read_text().replace("active", "deleted"))
    for place in (mlruns, metric_file(mlruns).parents[1]):
        with pytest.raises(CompareError, match="no runs"):
            read(place)


def test_no_link_in_a_folder_of_mlflow_is_followed(mlruns: Path, tmp_path: Path) -> None:
    folder = metric_file(mlruns).parents[1]
    (tmp_path / "secret").write_text("1 0.9 1\n")
    (folder / "metrics/linked").symlink_to(tmp_path / "secret")
    (folder / "params/linked").symlink_to(tmp_path / "secret")
    (folder / "tags/up").symlink_to(tmp_path)
    run = only(folder)
    assert "linked" not in run.summary and "linked" not in run.config


# ---- SQLite --------------------------------------------------------------------------------------


@pytest.fixture(params=["mlflow-sqlite", "trackio"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind: str = request.param
    (path,) = unpacked(kind, tmp_path).glob("*.db")
    return path


def test_half_a_database_is_a_line(database: Path) -> None:
    os.truncate(database, database.stat().st_size // 2)
    runs = read(database)
    assert {run.status for run in runs} == {"unreadable"}
    assert "malformed" in runs[0].note


def test_a_damaged_database_is_a_line(database: Path) -> None:
    content = bytearray(database.read_bytes())
    content[4096:] = b"\xff" * len(content[4096:])
    database.write_bytes(content)
    assert {run.status for run in read(database)} == {"unreadable"}


def test_an_empty_database_of_mlflow_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    (tmp_path / "other.db").touch()  # of any program
    assert only(tmp_path).note == "it can't be read: it is empty"


def test_reading_leaves_no_file_and_changes_none(database: Path) -> None:
    before = {path: path.read_bytes() for path in database.parent.iterdir()}
    assert len(read(database.parent)) == 2
    assert {path: path.read_bytes() for path in database.parent.iterdir()} == before


def test_a_database_that_is_being_written_is_read_with_its_log(database: Path) -> None:
    table = "runs" if database.stem == "mlflow" else "metrics"
    name = "name" if table == "runs" else "run_name"
    with sqlite3.connect(database) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute(f"UPDATE {table} SET {name} = 'renamed'")
        if table == "metrics":
            writer.execute("UPDATE configs SET run_name = 'renamed'")
        writer.commit()
        before = sorted(database.parent.iterdir())
        assert len(before) == 3  # with the log and its index
        assert {run.name for run in read(database)} == {"renamed"}
        assert sorted(database.parent.iterdir()) == before
    writer.close()


def endless(path: Path, kind: str) -> None:
    """A database whose table of runs would be computed for ever."""
    forever = (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
        "SELECT x AS run_uuid, x AS lifecycle_stage, x AS name FROM c"
    )
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE metrics (run_uuid, key, value, timestamp, step, is_nan)")
    if kind == "view":
        connection.execute(f"CREATE VIEW runs AS {forever}")
    elif kind == "virtual":
        connection.execute("CREATE VIRTUAL TABLE runs USING fts4(run_uuid, lifecycle_stage, name)")
    else:
        connection.execute(
            "CREATE TABLE runs (run_uuid, lifecycle_stage, n INT DEFAULT 9, "
            "name AS (hex(zeroblob(n * 1000000))))"
        )
        connection.execute("INSERT INTO runs VALUES ('a', 'active', 9)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize("kind", ["view", "virtual", "computed"])
def test_nothing_of_a_database_is_computed(kind: str, tmp_path: Path) -> None:
    endless(tmp_path / "mlflow.db", kind)
    if kind == "computed":
        assert only(tmp_path).note == "it can't be read: string or blob too big"
    else:
        with pytest.raises(CompareError, match="no runs"):
            read(tmp_path)


def test_a_database_that_takes_too_long_is_a_line(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "params" if database.stem == "mlflow" else "configs"
    connection = sqlite3.connect(database)
    connection.execute(f"ALTER TABLE {table} RENAME TO kept")
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM kept")
    for _ in range(14):
        connection.execute(f"INSERT INTO {table} SELECT * FROM {table}")
    connection.commit()
    connection.close()
    monkeypatch.setattr(databases, "_PATIENCE_S", -1)
    assert only(database).note == "it can't be read: reading it takes too long"


def test_a_run_with_too_many_values_is_a_line(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "MOST_POINTS", 5)
    assert "it has more than 5 values" in only(database).note


def test_too_many_rows_and_values_are_a_line(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(databases, "_MOST_ROWS", 1)
    assert "has more than 1 rows" in only(database).note


def test_too_much_text_is_a_line(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "_LARGEST_TABLE", 10)
    assert "has more than 10 bytes" in only(database).note


def test_odd_values_in_a_database_are_left_out(database: Path) -> None:
    connection = sqlite3.connect(database)
    if database.stem == "mlflow":
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE metrics SET step = 'x', value = x'00' WHERE step = 10")
        connection.execute("UPDATE runs SET name = ?, start_time = 1e300, status = 'x'", (EVIL,))
        connection.execute("UPDATE params SET value = ? WHERE key = 'lr'", ("[" * 100_000,))
    else:
        connection.execute("UPDATE metrics SET metrics = x'ff', step = 'x' WHERE step = 10")
        huge = json.dumps({"val_acc": 0.5, "huge": 10**400, "a": [1], "b": {"c": None}})
        connection.execute("UPDATE metrics SET metrics = ? WHERE step = 20", (huge,))
        connection.execute("UPDATE metrics SET run_name = ?, timestamp = 'x'", (EVIL,))
        connection.execute("UPDATE configs SET run_name = ?, config = '[1]'", (EVIL,))
    connection.commit()
    connection.close()
    runs = read(database)
    assert {run.name for run in runs} == {EVIL}
    assert all(run.curve("val_acc").keys() == {20, 30} for run in runs)
    if database.stem == "digits":
        assert {run.note for run in runs} == {"1 of its entries can't be read"}


def test_a_database_of_another_program_is_no_run(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "study.db")
    connection.execute("CREATE TABLE studies (a)")
    connection.commit()
    connection.close()
    for place in (tmp_path, tmp_path / "study.db"):
        with pytest.raises(CompareError, match="is no run and holds no runs"):
            read(place)


# ---- Parquet -------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    pytest.importorskip("pyarrow")
    return unpacked("parquet", tmp_path)


@pytest.mark.parametrize("name", ["runs.parquet", "metrics.parquet"])
@pytest.mark.parametrize("size", [0, 100, -20])
def test_a_parquet_file_that_was_cut_off_is_a_line(name: str, size: int, parquet: Path) -> None:
    os.truncate(parquet / name, size if size >= 0 else (parquet / name).stat().st_size + size)
    run = only(parquet)
    assert run.status == "unreadable"
    assert run.note.startswith("its Parquet files can't be read: ")


def rewrite(parquet: Path, repeat: int = 1, **columns: Any) -> None:
    """Writes ``runs.parquet`` anew, with other columns."""
    arrow, reader = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = reader.read_table(parquet / "runs.parquet")
    for name, value in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, arrow.array([value] * len(table)))
    reader.write_table(arrow.concat_tables([table] * repeat), parquet / "runs.parquet")


def test_odd_columns_of_parquet_are_a_line(parquet: Path) -> None:
    for columns in ({"name": 5}, {"config": "[1]"}, {"config": "{"}, {"fields": "5"}):
        folder = parquet.with_name("copy")
        shutil.copytree(parquet, folder)
        rewrite(folder, **columns)
        notes = {run.note for run in read(folder)}
        assert notes == {""} if columns == {"fields": "5"} else "can't be read" in str(notes)
        shutil.rmtree(folder)


def test_a_small_parquet_file_may_not_mean_gigabytes(parquet: Path) -> None:
    rewrite(parquet, 1_000, config=json.dumps({"a": "x" * 200_000}))
    assert (parquet / "runs.parquet").stat().st_size < 10**6
    assert "they have more than 134,217,728 bytes of settings" in only(parquet).note
    rewrite(parquet, 6, config="{}")
    assert "they have more than 10,000 rows" in only(parquet).note


def test_parquet_of_another_program_is_no_run(parquet: Path) -> None:
    reader = pytest.importorskip("pyarrow.parquet")
    table = reader.read_table(parquet / "runs.parquet").replace_schema_metadata({})
    reader.write_table(table, parquet / "runs.parquet")
    with pytest.raises(CompareError, match="no runs"):
        read(parquet)
    (parquet / "runs.parquet").write_bytes((parquet / "metrics.parquet").read_bytes())
    assert "can't be read" in only(parquet).note  # of this project, but without the columns


# ---- folders -------------------------------------------------------------------------------------


def record(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({"summary": {"test/acc": 0.5}}))
    return folder


def test_files_of_other_loggers_in_a_run_are_no_other_runs(tmp_path: Path) -> None:
    run = record(tmp_path / "mine")
    for kind in ("csv", "tensorboard", "wandb", "mlflow-folder", "trackio"):
        unpacked(kind, run)
    assert [found.name for found in read(tmp_path)] == ["mine"]


def test_links_do_not_lead_through_the_whole_disk(tmp_path: Path) -> None:
    record(tmp_path / "elsewhere/deep/deeper/run")
    record(tmp_path / "disk/run")
    record(tmp_path / "runs/mine")
    for target in ("elsewhere", "disk", "runs"):
        (tmp_path / "runs" / f"to-{target}").symlink_to(tmp_path / target)
    (tmp_path / "runs/mine2").symlink_to(tmp_path / "runs/mine")
    assert [run.name for run in read(tmp_path / "runs")] == ["mine", "run"]


def test_a_folder_without_permission_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path / "runs/mine")
    (tmp_path / "runs/closed").mkdir()
    known = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return known(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = {run.name: (run.status, run.note) for run in read(tmp_path / "runs")}
    assert found["closed"] == ("unreadable", "Permission denied")
    assert found["mine"][0] == "unknown"


def test_too_many_folders_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        (tmp_path / str(number)).mkdir()
    monkeypatch.setattr("experiments.sources.find._MOST_FOLDERS", 3)
    with pytest.raises(CompareError, match="holds more than 3 folders; name a folder within it"):
        read(tmp_path)


def test_settings_as_text_come_back_as_they_were() -> None:
    for value in (0.1, 1, True, None, "sgd", "0.1", "32-true", [1, "a"], "True", "null", '"x"'):
        assert foreign.setting_of(foreign.as_text(value)) == value
    assert foreign.setting_of("None") is None


def seeds(config: dict[str, object]) -> int | None:
    return foreign.run_of("a", Path("a"), "csv", config, []).seed


def test_a_seed_has_many_names() -> None:
    cases: list[tuple[dict[str, object], int | None]] = [
        ({"seed": 1, "data": {"seed": 2}}, 1),
        ({"seed_everything": 1, "seed": 2}, 1),
        ({"random_state": 3}, 3),
        ({"trainer": {"seed": 4}}, 4),
        ({"a": {"seed": 4}, "b": {"seed": 5}}, None),
        ({"data": {"seed": 2}}, None),
        ({"seed": "x"}, None),
        ({"seed": True}, None),
        ({"seed": 2**64}, None),
    ]
    assert [seeds(config) for config, _ in cases] == [seed for _, seed in cases]
