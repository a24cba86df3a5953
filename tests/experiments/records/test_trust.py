import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli import main
from datamodules.synthetic import VERSION
from experiments.errors import RunError
from experiments.records.record import RunRecord
from experiments.records.trust import check_run_config, remember
from tests.conftest import short_fit

TINY = ["--model=MLP", "--model.hidden_units=[4]"]
STRANGE = """
import pathlib
from pytorch_lightning import Callback
pathlib.Path(__file__).with_name("it_ran").touch()
class Boom(Callback):
    pass
def boom(*args, **kwargs):
    pass
"""
BOOM = "strange.Boom"
LIGHTNING = "pytorch_lightning"


@pytest.fixture(scope="module")
def made(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    short_fit(root, data_dir, *TINY, name="gift")
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of a run in a place where there is a strange module, of a user who wrote neither."""
    (tmp_path / "strange.py").write_text(STRANGE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a command may add to it
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield Path(shutil.copytree(made, tmp_path / "runs"))
    sys.modules.pop("strange", None)


@pytest.fixture
def config(runs: Path) -> Callable[[Callable[[dict[str, Any]], Any]], None]:
    """Lets a function change the run's own configuration."""

    def change(how: Callable[[dict[str, Any]], Any]) -> None:
        path = runs / "gift" / "config.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        how(content)
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    return change


@pytest.fixture
def ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run's configuration, still to be written, beside strange modules, a file and a data set."""
    for name in ("strange", "experiments_strange"):
        (tmp_path / f"{name}.py").write_text(STRANGE, encoding="utf-8")
    (tmp_path / "here").touch()
    (tmp_path / "set" / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / "runs" / "gift").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield tmp_path / "runs" / "gift" / "config.yaml"
    for name in ("strange", "experiments_strange"):
        sys.modules.pop(name, None)


def trainer(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["trainer"].update(values)


def model(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["model"]["init_args"].update(values)


def of(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": arguments}


def in_order(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    "strange",
    [
        trainer(callbacks=[of(BOOM)]),
        trainer(callbacks=[BOOM]),
        trainer(callbacks=BOOM),
        trainer(callbacks=f"[{{class_path: {BOOM}}}]"),
        trainer(callbacks='"[{class_path: strange.Boom}]"'),
        trainer(**{"callbacks+": [of(BOOM)]}),
        trainer(logger=of(BOOM)),
        trainer(callbacks="more"),  # files, whatever they are called
        trainer(logger="more.txt"),
        model(optimizer="more"),
        lambda content: content.update(ckpt_path="elsewhere.ckpt"),
        trainer(strategy=of(BOOM)),
        trainer(plugins=[BOOM]),
        trainer(profiler=BOOM),
        trainer(callbacks=[of(f"{LIGHTNING}.callbacks.LambdaCallback", on_fit_end="strange.boom")]),
        trainer(callbacks=[of(f"{LIGHTNING}.callbacks.LambdaCallback", on_fit_end="os.abort")]),
        trainer(callbacks=[of("experiments.session.shutil.rmtree")]),
        model(optimizer="strange.boom"),
        model(optimizer=of("strange.boom")),
        model(lr_scheduler=of("torch.optim.lr_scheduler.LambdaLR", lr_lambda="strange.boom")),
        lambda content: content.update(config="more.yaml"),
        lambda content: content.update(config=["more.yaml"]),
        lambda content: content.update(model="strange.yaml"),
        lambda content: content["data"].update(class_path=BOOM),
        trainer(profiler=of(f"{LIGHTNING}.profilers.SimpleProfiler", dirpath="/tmp/elsewhere")),
        trainer(profiler=of(f"{LIGHTNING}.profilers.SimpleProfiler", dirpath="elsewhere")),
        trainer(profiler=of(f"{LIGHTNING}.profilers.SimpleProfiler", filename="../../x")),
        trainer(logger=of(f"{LIGHTNING}.loggers.CSVLogger", save_dir="~/elsewhere")),
        trainer(logger=of(f"{LIGHTNING}.loggers.MLFlowLogger", tracking_uri="http://host/")),
        lambda content: content["data"]["init_args"].update(data_dir="not/there"),
    ],
)
def test_what_a_strangers_configuration_names_is_refused(
    strange: Callable[[dict[str, Any]], Any],
    config: Any,
    runs: Path,
    tmp_path: Path,
    error_of: Callable[[list[str]], str],
) -> None:
    config(strange)
    _is_refused(["test"], runs, tmp_path, error_of)


@pytest.mark.parametrize(
    "text",
    [
        "x: {class_path: Boom}",  # of a word that is no import path
        "ckpt_path: later.ckpt",
        "model: later.YAML",
        "x: {class_path: experiments_strange.Boom}",
        "x: {class_path: experiments.records.files.remove_folder}",
        "x: {class_path: experiments.records.record.FileLock}",
        "x: '[{class_path: '",
        "x: here",
        "x: ~/elsewhere",
        "x: {dirpath: '{run}/../elsewhere'}",
        "x: {save_dir: elsewhere}",
        "data: {data_dir: set, source: none}",
        "data: {data_dir: set, source: synthetic, synthetic_images: 7}",
        "data: {class_path: datamodules.CIFAR100DataModule, init_args: {data_dir: set, source: "
        "cifar100}}",
    ],
)
def test_each_way_out_of_a_run_is_refused(text: str, tmp_path: Path, ways_out: Path) -> None:
    ways_out.write_text(text.replace("{run}", str(ways_out.parent)), encoding="utf-8")
    with pytest.raises(RunError, match="refused"):
        check_run_config(ways_out, [])
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("text", ["x: {class_path: Boom}", "ckpt_path: later"])
def test_nor_is_it_allowed_from_within_the_run(
    text: str, ways_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ways_out.parent)
    ways_out.write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match="refused"):
        check_run_config(ways_out, [])


def test_what_the_command_gives_may_lead_anywhere(ways_out: Path) -> None:
    ways_out.write_text("data: {data_dir: /there}\nx: strange.Boom\n", encoding="utf-8")
    check_run_config(ways_out, ["--data.data_dir=/there", "--x=[strange.Boom]"])
    with pytest.raises(RunError, match=r"data\.data_dir leads out of the run"):
        check_run_config(ways_out, ["--x=strange.Boom"])


@pytest.mark.parametrize(
    ("kind", "source"), [("CIFAR10DataModule", "cifar10"), ("CIFAR100DataModule", "cifar100")]
)
def test_data_that_is_there_may_lie_anywhere(
    kind: str, source: str, ways_out: Path, tmp_path: Path
) -> None:
    data = of(f"datamodules.{kind}", data_dir=str(tmp_path / "set"), source=source)
    ways_out.write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    (tmp_path / "set" / "cifar-100-python").mkdir()
    check_run_config(ways_out, [])
    stand_in = "synthetic100" if source == "cifar100" else "synthetic"
    data["init_args"].update(source="synthetic", synthetic_images=200)
    ways_out.write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
    with pytest.raises(RunError, match="refused"):
        check_run_config(ways_out, [])
    (tmp_path / "set" / f"{stand_in}-v{VERSION}-200").mkdir()
    (tmp_path / "set" / f"{stand_in}-v{VERSION}-200" / "sha256.json").touch()
    check_run_config(ways_out, [])


def test_what_is_only_read_may_lie_anywhere(ways_out: Path) -> None:
    text = "model: {weights: /there/best.ckpt}\ndata: {predict_dir: /pictures}\n"
    ways_out.write_text(text, encoding="utf-8")
    check_run_config(ways_out, [])


def test_only_what_would_be_refused_is_remembered_and_for_this_user_alone(
    ways_out: Path, tmp_path: Path
) -> None:
    ways_out.write_text("model: MLP\n", encoding="utf-8")
    remember(ways_out)
    assert not (tmp_path / "state").exists()
    ways_out.write_text("x: strange.Boom\n", encoding="utf-8")
    remember(ways_out)
    check_run_config(ways_out, [])
    (folder,) = (tmp_path / "state").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "command",
    [
        ["validate"],
        ["predict"],
        ["fit", "--resume"],
        ["fit", "--ckpt_path=last"],
        ["fit", "--ckpt_path=best"],
    ],
)
def test_every_command_refuses_it(
    command: list[str], config: Any, runs: Path, tmp_path: Path, error_of: Any
) -> None:
    config(trainer(callbacks=[of(BOOM)]))
    _is_refused(command, runs, tmp_path, error_of)


def _is_refused(command: list[str], runs: Path, tmp_path: Path, error_of: Any) -> None:
    before = {path.name: path.read_bytes() for path in (runs / "gift").iterdir()}
    for name in ("more.yaml", "more.txt", "more"):
        text = yaml.safe_dump({"trainer": {"callbacks": [of(BOOM)]}})
        (runs / "gift" / name).write_text(text, encoding="utf-8")
    message = error_of([*command, f"--runs_dir={runs}", "--name=gift"])
    assert message.endswith("add --trust_run true")
    assert f"{runs / 'gift' / 'config.yaml'}: " in message
    assert not (tmp_path / "it_ran").exists()
    assert {p.name: p.read_bytes() for p in (runs / "gift").iterdir() if p.name in before} == before


@pytest.mark.parametrize(
    "known",
    [
        lambda content: None,
        trainer(callbacks=[of(f"{LIGHTNING}.callbacks.LearningRateMonitor")]),
        trainer(callbacks=[of("experiments.ActivationStatistics")], logger=False),
        model(lr_scheduler=of("torch.optim.lr_scheduler.StepLR", step_size=3)),
    ],
)
def test_a_strangers_run_of_known_classes_is_tested(
    known: Callable[[dict[str, Any]], Any], config: Any, runs: Path
) -> None:
    config(known)
    main(["test", f"--runs_dir={runs}", "--name=gift", "--trainer.logger=false"])
    assert "test/acc" in RunRecord.open(runs / "gift").summary


def test_what_the_command_names_may_be_used(config: Any, runs: Path, tmp_path: Path) -> None:
    config(trainer(callbacks=[of(BOOM)]))
    flags = [f"--runs_dir={runs}", "--name=gift", "--trainer.logger=false"]
    main(["test", *flags, "--trainer.callbacks+", BOOM])
    assert (tmp_path / "it_ran").exists()


def test_a_run_that_is_trusted_once_stays_so(config: Any, runs: Path) -> None:
    config(trainer(callbacks=[of(BOOM)]))
    flags = ["test", f"--runs_dir={runs}", "--name=gift", "--trainer.logger=false"]
    main([*flags, "--trust_run"])
    main(flags)


def test_a_users_own_run_goes_on_without_a_word(
    data_dir: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error_of: Any
) -> None:
    record = short_fit(runs, data_dir, *TINY, "--trainer.callbacks", BOOM, name="own")
    shutil.copytree(record.path, runs / "copy")
    for name in ("own", "copy"):
        main(["test", f"--runs_dir={runs}", f"--name={name}"])
    main(["fit", f"--runs_dir={runs}", "--name=own", "--resume", "--trainer.max_steps=6"])
    main(["fit", f"--runs_dir={runs}", "--name=own", "--resume", "--trainer.max_steps=8"])
    assert len(RunRecord.open(runs / "own").fields["resumed"]) == 2
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody else"))
    assert "names strange.Boom" in error_of(["test", f"--runs_dir={runs}", "--name=own"])


def test_a_folder_of_state_that_cannot_be_written_ends_nothing(
    data_dir: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    record = short_fit(runs, data_dir, *TINY, "--trainer.callbacks", BOOM, name="own")
    assert record.fields["status"] == "finished"
