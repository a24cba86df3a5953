import json
from pathlib import Path

import pytest

from benchmarks import step_time
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


def test_the_loop_takes_the_steps_it_is_asked_for(data_dir: Path) -> None:
    data = CIFAR10DataModule(
        data_dir=str(data_dir), source="synthetic", synthetic_images=IMAGES, val_size=100
    )
    data.setup()
    assert step_time.plain_loop(data, steps=7) > 0
