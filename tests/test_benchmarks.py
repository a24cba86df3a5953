import json
from pathlib import Path

import pytest

from benchmarks import layer_norm, step_time
from datamodules import CIFAR10DataModule
from tests.conftest import IMAGES


@pytest.mark.slow  # starts processes
def test_step_time_writes_a_result_with_its_circumstances(tmp_path: Path, data_dir: Path) -> None:
    output = tmp_path / "result.json"
    small = ["--source=synthetic", f"--synthetic_images={IMAGES}", f"--data_dir={data_dir}"]
    length = ["--val_size=100", "--steps=20", "--repeats=2"]
    step_time.main([*small, *length, f"--output={output}"])
    result = json.loads(output.read_text())
    assert len(result["ratios"]) == 2
    assert min(result["ours_ms_per_step"], result["loop_ms_per_step"]) > 0
    assert {"date", "git", "hardware", "versions"} <= result.keys()


def test_layer_norm_compares_all_ways_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, picture = tmp_path / "result.json", tmp_path / "speed.png"
    few = ["--rounds=2", "--no_compile", "--threads=1", "--shapes", "8x64", "4x2x3:2"]
    layer_norm.main([*few, f"--output={output}", f"--plot={picture}"])
    cases = json.loads(output.read_text())["cases"]
    assert len(cases) == 2 * 2 * 2  # shapes, dtypes, with and without affine
    for case in cases:
        assert case["forward"].keys() == {"native", "composed", "ours", "copy"}
        assert case["both"]["native"]["ratio"] == 1
        assert all(figures["us"] > 0 for figures in case["both"].values())
    assert len(capsys.readouterr().out.splitlines()) == len(cases)
    assert picture.stat().st_size > 1000


def test_the_loop_takes_the_steps_it_is_asked_for(data_dir: Path) -> None:
    data = CIFAR10DataModule(
        data_dir=str(data_dir), source="synthetic", synthetic_images=IMAGES, val_size=100
    )
    data.setup()
    assert step_time.plain_loop(data, steps=7) > 0
