"""That a record tells two machines apart, and says what each can do."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.records import machine
from experiments.records.machine import (
    SWITCH,
    calibration_words,
    hardware,
    machine_name,
    peak_gflops,
)
from tests.conftest import Cli

CPUINFO = """\
processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx avx2 fma avx512f avx512_bf16

processor\t: 1
cpu family\t: 99
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Calibrates in a few milliseconds, and keeps the result in an empty folder."""
    monkeypatch.delenv(SWITCH)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(machine, "_SIDE", {"cpu": (4, 8)})
    monkeypatch.setattr(machine, "_COPIED", {"cpu": 2**16})
    return tmp_path / "cifar10-lightning"


def test_a_machine_is_calibrated_once(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = hardware()["calibration"]
    assert measured.keys() == {"fp32_gflops", "bf16_gflops", "copy_gb_s"}
    assert min(measured.values()) > 0
    monkeypatch.setattr(machine, "_measure", None)
    assert hardware()["calibration"] == measured
    monkeypatch.setattr("platform.node", lambda: "another")
    with pytest.raises(TypeError):  # it would be measured
        hardware()


def test_the_better_figure_is_kept(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter([{"fp32_gflops": 5.0, "copy_gb_s": 2.0}, {"fp32_gflops": 4.0, "copy_gb_s": 3.0}])
    monkeypatch.setattr(machine, "_measure", lambda device, prefix: next(figures))
    hardware()
    best = {"fp32_gflops": 5.0, "copy_gb_s": 3.0}
    assert hardware(again=True)["calibration"] == hardware()["calibration"] == best


@pytest.mark.parametrize("content", ["", "[1]", '{"fp32_gflops": "fast"}', '{"fp32_gflops": NaN}'])
def test_a_damaged_calibration_is_measured_again(quick: Path, content: str) -> None:
    measured = hardware()["calibration"]
    (kept,) = quick.glob("machine-*.json")
    kept.write_text(content)
    assert hardware()["calibration"].keys() == measured.keys()
    assert json.loads(kept.read_text()).keys() == measured.keys()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    quick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick.parent.joinpath("a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(quick.parent / "a file"))
    assert hardware()["calibration"]


def test_a_record_holds_the_calibration(quick: Path, fit: Cli) -> None:
    run = fit("--model=MLP")
    assert run.fields["hardware"]["calibration"]["fp32_gflops"] > 0


def test_off_means_off() -> None:
    assert "calibration" not in hardware()


def test_processors_of_one_name_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    monkeypatch.setattr(machine, "_PROCESSORS", tmp_path / "cpuinfo")
    found = hardware()
    assert (found["cpu"], found["cpu_family"], found["cpu_model"]) == ("AMD EPYC", 25, 17)
    assert found["flags"] == ["avx", "avx2", "fma", "avx512f", "avx512_bf16"]
    assert machine_name({**found, "cores": 2}) == "AMD EPYC 25/17, 2 cores"


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ({"cpu": "AMD EPYC", "threads": 2, "gpus": []}, "AMD EPYC, 2 cores"),  # an old record
        ({"cpu": "Xeon", "cores": 16, "gpus": ["H100"]}, "Xeon, 16 cores, H100"),
        ({}, ""),
        ({"gpus": 7, "cores": None}, ""),
        (
            {"cpu": "Xeon", "cpu_family": None, "cpu_model": [1], "cores": -2, "threads": 4},
            "Xeon, 4 cores",
        ),
        ({"cpu": {"a": 1}, "gpus": [None, "x" * 99]}, "x" * 59 + "…"),
    ],
)
def test_the_name_of_a_machine(parts: dict[str, Any], name: str) -> None:
    assert machine_name(parts) == name


def test_the_peak_is_that_of_device_and_precision() -> None:
    figures = {"fp32_gflops": 2.0, "bf16_gflops": 4.0, "gpu_bf16_gflops": 8.0}
    parts = {"calibration": figures}
    assert peak_gflops(parts, "32-true", on_gpu=False) == 2.0
    assert peak_gflops(parts, "bf16-mixed", on_gpu=False) == 4.0
    assert peak_gflops(parts, "16-mixed", on_gpu=True) == 8.0
    assert peak_gflops(parts, "32-true", on_gpu=True) is None
    assert peak_gflops({"calibration": "fast"}, None, on_gpu=False) is None


def test_a_calibration_in_words() -> None:
    figures = {"fp32_gflops": 217.9, "bf16_gflops": 983.9, "gpu_copy_gb_s": 3000.0}
    assert calibration_words({"calibration": figures}) == (
        "at most 218 GFLOP/s in float32, 984 GFLOP/s in bfloat16, on the GPU 3,000 GB/s of memory"
    )
    assert calibration_words({}) == calibration_words({"calibration": {"a": "b"}}) == ""
