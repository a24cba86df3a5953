import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import (
    batch_norm,
    convolution,
    fast94,
    layer_norm,
    loader,
    recipes,
    step_overhead,
    time_to_accuracy,
)
from datamodules import CIFAR10DataModule
from tests.conftest import IMAGES, Cli


@pytest.mark.slow  # starts processes
def test_step_overhead_writes_a_result_with_its_circumstances(
    tmp_path: Path, data_dir: Path
) -> None:
    output = tmp_path / "result.json"
    small = ["--source=synthetic", f"--synthetic_images={IMAGES}", f"--data_dir={data_dir}"]
    length = ["--val_size=100", "--steps=20", "--repeats=2"]
    step_overhead.main([*small, *length, f"--output={output}"])
    result = json.loads(output.read_text())
    assert result["ms_per_step"].keys() == {"ours", "loop", "usual"}
    assert min(result["ms_per_step"].values()) > 0
    assert [len(found) for found in result["ratios"].values()] == [2, 2]
    assert {"date", "git", "hardware", "versions"} <= result.keys()


def test_loader_compares_all_ways(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    loader.main(["--images=600", "--repeats=1", f"--output={output}"])
    found = json.loads(output.read_text())["core_seconds_per_epoch"]
    assert found.keys() == {"ours", "torchvision, 0 workers", "torchvision, 2 workers"}
    assert min(found.values()) >= 0


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
    assert len(capsys.readouterr().out.splitlines()) == len(cases) + 1  # and the machine
    drawn = picture.read_bytes()
    picture.unlink()
    layer_norm.main(["--plot_only", f"--output={output}", f"--plot={picture}"])
    assert picture.read_bytes() == drawn


def test_convolutions_are_compared_with_their_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    few = ["--rounds=2", "--threads=1", "--shapes", "16x64x64x8", "1x3x4x5", "16x64x64x8p"]
    convolution.main([*few, f"--output={output}"])
    cases = json.loads(output.read_text())["cases"]
    assert [case["used"] for case in cases] == [True, False, True] * 2
    assert [case["pooled"] for case in cases] == [False, False, True] * 2
    for case in cases:
        assert case["forward"]["native"]["ratio"] == case["backward"]["native"]["ratio"] == 1
        most = 0.1 if case["pooled"] else 1e-2  # rounding may choose another pixel
        assert all(e < most for errors in case["errors"].values() for e in errors.values())
    assert len(capsys.readouterr().out.splitlines()) == len(cases) + 1  # and the machine


def test_fused_batch_norms_are_compared_with_their_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    few = ["--rounds=2", "--threads=1", "--shapes", "8x16x5p", "8x16x4"]
    batch_norm.main([*few, f"--output={output}"])
    cases = json.loads(output.read_text())["cases"]
    assert [case["pooled"] for case in cases] == [True, False] * 2
    for case in cases:
        assert case["forward"]["native"]["ratio"] == case["backward"]["native"]["ratio"] == 1
        assert all(e < 1e-2 for errors in case["errors"].values() for e in errors.values())
    assert len(capsys.readouterr().out.splitlines()) == len(cases) + 1  # and the machine


def test_the_loop_takes_the_steps_it_is_asked_for(data_dir: Path) -> None:
    data = CIFAR10DataModule(
        data_dir=str(data_dir), source="synthetic", synthetic_images=IMAGES, val_size=100
    )
    data.setup()
    assert step_overhead.plain_loop(data, steps=7) > 0


RECIPE = """
trainer: {max_epochs: 1, accelerator: cpu, enable_model_summary: false, logger: false}
model:
  class_path: lightning_modules.FastCNN
  init_args:
    widths: [4, 8, 8]
    optimizer: {class_path: lightning_modules.Muon, init_args: {lr: 0.1}}
    lr_scheduler: {class_path: lightning_modules.LinearSchedule}
data:
  class_path: datamodules.CIFAR10DataModule
  init_args: {batch_size: 50, val_size: 0, normalization: channel, crop: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path, data_dir: Path) -> list[str]:
    """A small recipe as the arguments of `fast94`, with the data it runs on."""
    config = tmp_path / "small.yaml"
    config.write_text(RECIPE)
    synthetic = ["--data.source=synthetic", f"--data.synthetic_images={IMAGES}"]
    places = [f"--output={tmp_path / 'result.json'}", f"--runs_dir={tmp_path / 'runs'}"]
    return [f"--config={config}", f"--data_dir={data_dir}", *places, *synthetic]


def test_fast94_collects_seeds_and_runs_none_twice(tmp_path: Path, recipe: list[str]) -> None:
    fast94.main(["accuracy", *recipe, "--seeds", "0"])
    record = tmp_path / "runs" / "small-s0" / "record.json"
    written = record.stat().st_mtime_ns
    fast94.main(["accuracy", *recipe, "--seeds", "0", "1"])
    assert record.stat().st_mtime_ns == written
    result = json.loads((tmp_path / "result.json").read_text())
    accuracies = [run["test/acc"] for run in result["runs"]]
    assert result["means"]["test/acc"]["mean"] == pytest.approx(sum(accuracies) / 2)
    assert result["means"]["test/acc_one_view"]["n"] == 2
    assert [run["seed"] for run in result["runs"]] == [0, 1]


def test_fast94_times_a_step_with_each_choice_of_kernels(tmp_path: Path, recipe: list[str]) -> None:
    fast94.main(["step", *recipe, "--repeats=1", "--sizes", "24", "--precision=32-true"])
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["steps"].keys() == {"24 pixels"}
    assert written["steps"]["24 pixels"].keys() == {"native", "winograd", "winograd, fused"}
    assert written["precision"] == "32-true"


def test_fast94_compares_gradients_with_those_in_float64(tmp_path: Path, recipe: list[str]) -> None:
    fast94.main(["gradient", *recipe])
    result = json.loads((tmp_path / "result.json").read_text())
    errors = result["relative error of each convolution"]
    assert {len(error) for error in errors.values()} == {6}
    assert max(errors["32-true, ours"]) < min(errors["bf16-mixed, native"])
    assert max(errors["bf16-mixed, ours"]) < min(errors["another batch"])


@pytest.mark.slow
def test_fast94_compares_with_a_plain_script(tmp_path: Path, recipe: list[str]) -> None:
    fast94.main(["speed", *recipe, "--repeats=1"])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["images"] == 5 * IMAGES
    assert result["ours"]["ratio"] == 1
    for way in ("plain", "native kernels"):
        assert result[way]["ratio"] == pytest.approx(
            result["ours"]["images_per_s"] / result[way]["images_per_s"], rel=1e-2
        )


def test_accuracy_over_time_is_what_the_runs_recorded(tmp_path: Path, fit: Cli) -> None:
    record = fit("--model=MLP")
    output, picture = tmp_path / "result.json", tmp_path / "plot.png"
    time_to_accuracy.main([str(record.path), f"--output={output}", f"--plot={picture}"])
    (run,) = json.loads(output.read_text())["runs"]
    assert run["name"] == record.name
    assert run["val/acc"][-1] == pytest.approx(record.summary["val/acc"], abs=1e-4)
    assert 0 < run["seconds"][0] < run["seconds"][1]
    assert picture.stat().st_size > 1000
    kept, drawn = output.read_bytes(), picture.read_bytes()
    picture.unlink()
    time_to_accuracy.main([f"--output={output}", f"--plot={picture}"])
    assert (output.read_bytes(), picture.read_bytes()) == (kept, drawn)


def test_accuracy_over_time_needs_validations(fit: Cli) -> None:
    record = fit("--model=MLP", "--data.val_size=0", "--trainer.val_check_interval=1.0")
    with pytest.raises(SystemExit, match="no validations; fit it with"):
        time_to_accuracy.main([str(record.path)])


def test_a_variant_of_the_recipe_trains_on_the_centre_of_its_images(
    fit: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    given: list[Tensor] = []
    step, forward = recipes.Variant.training_step, recipes.Variant.forward

    def training_step(self: Any, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        given.append(batch[0])
        return step(self, batch, batch_idx)

    def noting(self: Any, images: Tensor) -> Tensor:
        if given and self.training:
            seen.append((given.pop(), images))
        return forward(self, images)

    monkeypatch.setattr(recipes.Variant, "training_step", training_step)
    monkeypatch.setattr(recipes.Variant, "forward", noting)
    small = ["--model.widths=[4,8,8]", "--data.normalization=channel"]
    fit(
        "--model=benchmarks.recipes.Variant",
        *small,
        "--model.sizes=[[0.5,20,true],[0.75,24,false]]",
    )
    assert [images.shape[-1] for _, images in seen] == [20, 20, 24, 32]
    whole, part = seen[0]
    assert torch.equal(whole[:, :, 6:26, 6:26], part)


def test_jitter_changes_the_brightness_and_contrast_of_an_image() -> None:
    images = torch.randn(50, 3, 8, 8)
    for impossible in (
        {"sizes": [(0.5, 0, False)]},
        {"sizes": [(0.5, 40, True)]},
        {"sizes": [(0.9, 24, False), (0.3, 16, True)]},
        {"sizes": [(5.0, 24, False)]},
        {"jitter": -1.0},
    ):
        with pytest.raises(ValueError, match=r"model\.(sizes|jitter) must"):
            recipes.Variant(**impossible)
    changed = recipes._jittered(images, 0.1)
    moved = (changed - images).mean((1, 2, 3)).abs()
    scaled = (changed.std((1, 2, 3)) / images.std((1, 2, 3)) - 1).abs()
    for found in (moved, scaled):
        assert found.max() <= 0.1 + 1e-5
        assert found.max() > 0.05
