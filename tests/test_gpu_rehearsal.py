"""The way of a GPU, rehearsed without one: `stand_in_gpu` says what that shows and what not."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import BatchSource
from datamodules.transforms import AugmentedImages
from experiments.records.record import RunRecord
from lightning_modules import CNN, MLP, Classifier, Muon
from lightning_modules.measures import EvaluationSums
from tests.conftest import SHORT, Cli, mark_slow
from tests.lab import MODELS
from tests.stand_in_gpu import GPU, HostWaitsError, MixedDevicesError, stand_in

FLOAT32 = "--trainer.precision=32-true"
ON_GPU = ["--trainer.accelerator=gpu", "--trainer.devices=1"]
_MLP = ["--model=MLP", "--model.hidden_units=[20]"]
_MOMENTUM = ["--model.optimizer=SGD", "--model.optimizer.lr=0.01", "--model.optimizer.momentum=0.9"]
KINDS = {
    "MLP": [*_MLP, "--data.crop=2", "--data.flip=random", "--data.cutout=8", *_MOMENTUM],
    "batch": [*_MLP, "--model.norm=batch", "--model.label_smoothing=0.1", "--data.val_size=0"],
    "layer": [*_MLP, "--model.norm=layer", "--model.optimizer=Adam", "--model.optimizer.lr=0.001"],
    "layer_native": [*_MLP, "--model.norm=layer_native", "--trainer.gradient_clip_val=0.1"],
    # Muon, averaged weights, six views. The fused kernel of the CPU differs in the last digits.
    "FastCNN": [*MODELS["FastCNN"], "--model.fused=false"],
    "FineTuned": MODELS["dropout"],
}
QUICK = KINDS.keys() - {"batch", "layer_native", "FineTuned"}


def shown(record: RunRecord) -> dict[str, float]:
    """What a run measured, but for its speed."""
    kept = ("train/loss", "train/acc", "val/", "test/acc", "test/loss")
    flat = {key: value for key, value in record.summary.items() if key.startswith(kept)}
    for stage in ("val", "test"):
        per_class = flat.pop(f"{stage}/per_class", None) or {}
        flat |= {f"{stage}/{name}": value for name, value in per_class.items()}
    return flat


def probabilities(record: RunRecord) -> list[list[float]]:
    rows = list(csv.reader((record.path / "predictions.csv").open()))
    return [[float(cell) for cell in row[4:]] for row in rows[1:]]


@pytest.mark.parametrize("kind", mark_slow(KINDS, except_for=QUICK))
def test_a_gpu_trains_as_the_cpu_and_no_tensor_stays_behind(kind: str, fit: Cli) -> None:
    args = [*KINDS[kind], FLOAT32, "--test_after_fit=true"]
    seeds: list[int] = []
    on_cpu = fit(*args, name="cpu")
    with stand_in(seeds):
        on_gpu = fit(*args, *ON_GPU, name="gpu")
        assert on_gpu.fields["hardware"]["gpus"] == ["stand-in"]
        assert on_gpu.summary["train/peak_gpu_mib"] == 1
        assert len({*seeds}) == 4  # dropout is another in every step
    assert shown(on_gpu) == pytest.approx(shown(on_cpu), rel=1e-4)
    weights = [torch.load(run.path / "last.ckpt")["state_dict"] for run in (on_cpu, on_gpu)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)


def test_what_a_gpu_trained_is_evaluated_and_goes_on_there(fit: Cli, evaluate: Cli) -> None:
    args = [*KINDS["MLP"], FLOAT32, "--trainer.log_every_n_steps=4"]
    whole = fit(*args, name="cpu")
    evaluate("predict", "--trainer.logger=false", name="cpu")
    with stand_in():
        fit(*args, *ON_GPU, "--trainer.max_steps=3", name="gpu")  # a log is due after 4
        fit(*args, *ON_GPU, "--ckpt_path=last", name="gpu")
        evaluate("validate", "--trainer.logger=false", name="gpu")
        evaluate("test", "--trainer.logger=false", name="gpu")
        part = evaluate("predict", "--trainer.logger=false", name="gpu")
    assert part.summary["train/loss"] == pytest.approx(whole.summary["train/loss"], rel=1e-5)
    assert part.summary["validate/acc"] == whole.summary["val/acc"]
    assert "test/per_class" in part.summary
    for found, expected in zip(probabilities(part), probabilities(whole), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_gpu_config_runs(fit: Cli) -> None:
    with stand_in():  # bf16-mixed: the stand-in computes in float32 all the same
        fit(
            *KINDS["layer"],
            "--trainer.max_steps=2",
            "--config=configs/trainer/gpu.yaml",
            "--trainer.accelerator=gpu",
        )


def test_numpy_on_a_gpu_is_refused_before_there_is_a_run(
    error_of: Callable[[list[str]], str], synthetic: list[str], runs: Path
) -> None:
    with stand_in():
        args = ["--model=NumPyMLP", *synthetic, *SHORT, *ON_GPU, f"--runs_dir={runs}"]
        assert "run it with --trainer.accelerator cpu" in error_of(["fit", *args])
    assert not runs.exists()


AUTHORS = {"block_order": "bn_conv_relu", "final_norm": False}


@pytest.mark.parametrize("options", [{}, pytest.param(AUTHORS, marks=pytest.mark.slow)])
def test_a_step_of_the_large_network(options: dict[str, Any]) -> None:
    with stand_in():
        model = CNN(**options).to(GPU)
        images = torch.randn(2, 3, 32, 32, device=GPU)
        loss = model.training_step((images, torch.tensor([1, 2], device=GPU)), 0)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer: Any = model.configure_optimizers()
        optimizer.step()
        assert {p.device for p in model.parameters()} == {GPU}
        assert model.eval().predict_step((images,), 0).device == GPU


def test_muon_steps_with_all_that_it_keeps_on_the_gpu() -> None:
    with stand_in():
        weights = [
            torch.nn.Parameter(torch.randn(*shape, device=GPU))
            for shape in ((4, 3, 2, 2), (4, 3), (4,))
        ]
        optimizer = Muon(weights, weight_decay=0.1)
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.ones_like(weight)
            optimizer.step()
        assert {optimizer.state[weight]["momentum"].device for weight in weights} == {GPU}


def test_images_look_otherwise_in_every_epoch() -> None:
    with stand_in():
        pixels = torch.arange(8 * 3 * 32 * 32, device=GPU).view(8, 3, 32, 32).to(torch.uint8)
        source = BatchSource(AugmentedImages(pixels, 4, "random", cutout=4), batch_size=8)
        epochs = []
        for epoch in (0, 1, 0):
            source.set_epoch(epoch)
            ((images,),) = source
            assert images.device == GPU
            epochs.append(images.cpu())
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0], epochs[2])


# ---- the stand-in notices ------------------------------------------------------------------------

Fault = Callable[[], Any]


def images_on_gpu(**options: Any) -> AugmentedImages:
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device=GPU)
    return AugmentedImages(images, crop=2, flip="random", cutout=4, **options)


def left_on_cpu(owner: Any, name: str, use: Callable[[Any], Any]) -> Any:
    """Puts an attribute back onto the CPU, and uses its owner."""
    setattr(owner, name, getattr(owner, name).cpu())
    return use(owner)


def take(images: AugmentedImages) -> Tensor:
    return images[torch.tensor([0, 1], device=GPU)]


def order_on_cpu() -> Any:
    source = BatchSource(torch.zeros(4, device=GPU), batch_size=2, shuffle_seed=0)
    return source.tensors[0][source._order()]


def buffers_on_cpu() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2, device=GPU))
    optimizer = Muon([weight])
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    optimizer.state[weight]["momentum"] = optimizer.state[weight]["momentum"].cpu()
    optimizer.step()


def labels_on_cpu() -> Any:
    model = MLP(hidden_units=[2]).to(GPU)
    return model.training_step((torch.zeros(2, 3, 32, 32, device=GPU), torch.tensor([0, 1])), 0)


def metrics_on_cpu() -> None:
    labels = torch.tensor([0, 1], device=GPU)
    EvaluationSums(10).matrix.update(labels, labels)


FAULTS: dict[str, Fault] = {
    "offsets": lambda: left_on_cpu(images_on_gpu(), "_shifts", take),
    "mirrored": lambda: left_on_cpu(images_on_gpu(), "_mirrored", take),
    "centres": lambda: left_on_cpu(images_on_gpu(), "_centres", take),
    "fill": lambda: take(images_on_gpu(fill=torch.zeros(3, 1, 1, dtype=torch.uint8))),
    "order": order_on_cpu,
    "buffers": buffers_on_cpu,
    "labels": labels_on_cpu,
    "metrics": metrics_on_cpu,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_tensor_left_on_the_cpu_is_noticed(fault: str) -> None:
    with stand_in(), pytest.raises(MixedDevicesError):
        FAULTS[fault]()


def test_a_step_that_waits_for_the_gpu_is_noticed(fit: Cli, monkeypatch: Any) -> None:
    step = Classifier.training_step

    def waiting(self: Classifier, batch: Any, batch_idx: int) -> Tensor:
        loss = step(self, batch, batch_idx)
        assert loss.item() > 0
        return loss

    monkeypatch.setattr(Classifier, "training_step", waiting)
    with stand_in(), pytest.raises(HostWaitsError, match="a training step waits"):
        fit(*KINDS["MLP"], FLOAT32, *ON_GPU, name="gpu")
