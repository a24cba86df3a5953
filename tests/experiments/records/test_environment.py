"""Which precision is chosen on which hardware, and that a run remembers it."""

from typing import Any

import pytest
import torch
import yaml

from experiments.records import environment
from experiments.records.environment import fast_precision
from tests.conftest import Cli

SMALL = ["--model=FastCNN", "--model.widths=[4,8,8]"]


@pytest.mark.parametrize(
    ("accelerator", "capabilities", "expected"),
    [
        ("cpu", {"avx512_bf16": True}, "bf16-mixed"),
        ("cpu", {"amx_bf16": True}, "bf16-mixed"),
        ("cpu", {"avx512_f": True, "avx512_bf16": False}, "32-true"),
        ("auto", {"avx512_bf16": True}, "bf16-mixed"),
        ("mps", {"avx512_bf16": True}, "32-true"),
    ],
)
def test_precision_without_a_gpu(
    accelerator: str, capabilities: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert fast_precision(accelerator) == expected


@pytest.mark.parametrize(
    ("calibration", "expected"),
    [
        ({"bf16_gflops": 169.0, "fp32_gflops": 322.0}, "32-true"),
        ({"bf16_gflops": 994.0, "fp32_gflops": 447.0}, "bf16-mixed"),
        ({"fp32_gflops": 447.0}, "bf16-mixed"),
        ({}, "bf16-mixed"),
    ],
)
def test_slow_instructions_are_not_used(
    calibration: dict[str, float], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(environment, "hardware", lambda: {"calibration": calibration})
    assert fast_precision("cpu") == expected


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "16-mixed")])
def test_precision_with_a_gpu(bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: bf16)
    assert fast_precision("gpu") == fast_precision("auto") == expected


def has_bf16(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": value})


def precision_of(run: Any) -> Any:
    return yaml.safe_load((run.path / "config.yaml").read_text())["trainer"]["precision"]


def test_a_run_holds_the_precision_that_was_chosen(
    fit: Cli, evaluate: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    has_bf16(monkeypatch, True)
    run = fit(*SMALL)
    assert precision_of(run) == "bf16-mixed"
    assert "bf16-mixed is fastest here; --trainer.precision" in capsys.readouterr().err
    has_bf16(monkeypatch, False)  # another machine evaluates in what it was trained in
    evaluate("test", "--ckpt_path=last")
    assert "in bf16-mixed" in capsys.readouterr().err


def test_a_precision_asked_for_is_taken(fit: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    has_bf16(monkeypatch, True)
    assert precision_of(fit(*SMALL, "--trainer.precision=32-true")) == "32-true"
    assert (
        precision_of(fit("--model=MLP", name="mlp")) is None
    )  # the MLPs stay at Lightning's float32
