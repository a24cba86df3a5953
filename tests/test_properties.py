"""Whatever a config holds: it is taken, or refused in one line, and never half of either."""

import functools
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pytorch_lightning import Trainer

from cli import main
from datamodules import CIFAR10DataModule
from lightning_modules import CNN, MLP, Classifier, FastCNN, NumPyMLP
from tests.conftest import PROJECT

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([-1, 0, 1, 2, 3, 7, 31, 33, 2**31, 10**30, -(10**30)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["none", "MLP", "Adam", "cpu", "auto", "[1", "a.b", "1e400", "=", "!!x"]),
)
WORDS = st.text("abc_.", min_size=1, max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.sampled_from(["class_path", "init_args"]), inner, max_size=2)
    ),
    max_leaves=4,
)
# Where the data comes from, and how much of it, are the test's.
_OF_THE_TEST = {"self", "data_dir", "source", "synthetic_images", "download"}
_TRAINER = """
    accelerator strategy devices num_nodes precision callbacks max_epochs min_epochs max_steps
    min_steps max_time limit_train_batches limit_val_batches limit_test_batches overfit_batches
    val_check_interval check_val_every_n_epoch num_sanity_val_steps log_every_n_steps
    accumulate_grad_batches gradient_clip_val gradient_clip_algorithm deterministic benchmark
    profiler detect_anomaly sync_batchnorm plugins reload_dataloaders_every_n_epochs
    default_root_dir enable_checkpointing
"""
_TOP = ("seed_everything", "save_every_min", "name", "model", "trainer")


def options_of(kind: type) -> list[str]:
    return [name for name in inspect.signature(kind).parameters if name not in _OF_THE_TEST]


MODELS: list[type[Classifier]] = [MLP, NumPyMLP, CNN, FastCNN]
OPTIONS = [
    *((model, "model", name) for model in MODELS for name in options_of(model)),
    *((MLP, "data", name) for name in options_of(CIFAR10DataModule)),
    *((MLP, "trainer", name) for name in _TRAINER.split()),
    *((MLP, "", name) for name in _TOP),
]


def config_with(model: type[Classifier], group: str, name: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = {"model": {"class_path": model.__name__}}
    if group == "model":
        config["model"]["init_args"] = {name: value}
    elif group:
        config[group] = {name: value}
    else:
        config[name] = value
    return config


class Accepted(BaseException):
    """The trainer would have been started."""


@pytest.fixture
def outcome(
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], None]:
    """Runs a config's text up to the training."""

    @functools.wraps(Trainer.fit)  # its arguments are the command's flags
    def accept(*args: Any, **kwargs: Any) -> NoReturn:
        raise Accepted

    monkeypatch.setattr(Trainer, "fit", accept)
    monkeypatch.chdir(tmp_path)
    path, runs = tmp_path / "config.yaml", tmp_path / "runs"
    flags = [*synthetic, f"--runs_dir={runs}", "--trainer.logger=false"]

    def run(text: str) -> None:
        path.write_text(text)
        try:
            main(["fit", f"--config={path}", *flags])
        except Accepted:
            shutil.rmtree(runs, ignore_errors=True)
            capsys.readouterr()
        except SystemExit as stop:
            lines = capsys.readouterr().err.splitlines()
            assert stop.code == 2, (stop.code, lines)
            assert lines[-1].startswith("error: "), lines
            assert not [line for line in lines if "Traceback" in line]
            assert not runs.exists()

    return run


def quickly(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # shrinking takes minutes, and the values are small
        suppress_health_check=[*HealthCheck],
    )


@pytest.mark.parametrize("examples", [8, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_value_is_taken_or_refused_in_one_line(
    examples: int, outcome: Callable[[str], None]
) -> None:
    @quickly(examples)
    @given(st.sampled_from(OPTIONS), VALUES)
    def holds(option: tuple[type[Classifier], str, str], value: Any) -> None:
        outcome(yaml.safe_dump(config_with(*option, value)))

    holds()


TEXTS = [
    (PROJECT / "configs" / f"{name}.yaml").read_text()
    for name in ("mlp", "mlp_deep", "mlp_numpy", "cnn", "fast94")
]


@pytest.mark.parametrize("examples", [6, pytest.param(2000, marks=pytest.mark.slow)])
def test_any_slip_in_a_config_is_taken_or_refused_in_one_line(
    examples: int, outcome: Callable[[str], None]
) -> None:
    @quickly(examples)
    @given(st.sampled_from(TEXTS), st.data())
    def holds(text: str, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(text) - 1))
        until = data.draw(st.integers(at, min(len(text), at + 30)))
        put = data.draw(st.sampled_from(["", text[at:until] * 2]) | st.text(max_size=3))
        outcome(text[:at] + put + text[until:])

    holds()
