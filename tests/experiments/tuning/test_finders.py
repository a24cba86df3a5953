"""Finders of a learning rate and of a batch size, as their users start them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import main
from experiments.tuning.find_lr import steepest
from tests.conftest import Cli

Finder = Callable[..., str]


@pytest.fixture
def find(
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Finder:
    """Runs a finder in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(program: str, *words: str) -> str:
        main([program, *synthetic, *words])
        return capsys.readouterr().out

    return run


MODELS = {
    "MLP": ["--model=MLP", "--model.weight_std=0.02"],
    "NumPyMLP": ["--model=NumPyMLP", "--model.weight_std=0.02"],
    # Its flag is the rate of the filters alone; a schedule would overwrite the rates.
    "FastCNN": ["--config=fast94", "--model.widths=[4, 4, 4]", "--data.val_size=100",
                "--data.batch_size=50", "--trainer.precision=32-true"],
    "plateau": ["--model=MLP", "--model.weight_std=0.02",
                "--model.lr_scheduler=pytorch_lightning.cli.ReduceLROnPlateau",
                "--model.lr_scheduler.monitor=val/loss"],
}  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_a_learning_rate_is_suggested_for_every_model(
    model: str, find: Finder, tmp_path: Path
) -> None:
    out = find("find_lr", *MODELS[model], "--steps=60", "--plot=rates.png")
    found = re.search(r"^the loss falls fastest at: --model\.lr (\S+)$", out, re.MULTILINE)
    assert found is not None, out
    assert 1e-6 < float(found[1]) < 10
    with Image.open(tmp_path / "rates.png") as picture:
        assert picture.width > 500
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".png"] in ([], ["data0"])


def test_the_ramp_ends_when_the_training_diverges(find: Finder) -> None:
    out = find("find_lr", *MODELS["MLP"], "--steps=100", "--max_lr=1e6")
    steps = re.match(r"(\d+) steps from 1e-06 to (\S+):", out)
    assert steps is not None
    assert int(steps[1]) < 100
    assert float(steps[2]) < 1e5


def test_a_batch_size_is_suggested(find: Finder, tmp_path: Path) -> None:
    out = find("find_batch_size", *MODELS["MLP"], "--min_size=300")
    assert re.search(r"^ +300 +[\d,]+ images/s$", out, re.MULTILINE)
    assert re.search(r"^ +600 +[\d,]+ images/s$", out, re.MULTILINE)
    assert "there are 900 training images: see find_batch_size.png" in out
    assert re.search(r"--data\.batch_size (300|600) ", out)
    assert (tmp_path / "find_batch_size.png").is_file()


def test_a_fit_after_a_finder_is_the_fit_without_it(find: Finder, fit: Cli) -> None:
    before = fit("--model=MLP", name="before").summary["train/weights_sha256"]
    find("find_lr", *MODELS["MLP"], "--steps=20", "--min_lr=1e-4")
    assert fit("--model=MLP", name="after").summary["train/weights_sha256"] == before


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = np.geomspace(1e-6, 10, 200)
    falls = 2.3 - 1 / (1 + (1e-3 / rates) ** 2)  # fastest at 1e-3 over log(rate)
    losses = falls + np.maximum(0, np.log(rates / 0.5)) ** 2
    noisy = losses + np.random.default_rng(0).normal(0, 0.01, 200)
    assert steepest(rates, losses) == pytest.approx(1e-3, rel=0.2)
    assert steepest(rates, noisy) == pytest.approx(1e-3, rel=0.6)
    assert steepest(rates, rates) is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["find_lr", "--min_lr=1", "--max_lr=0.1"], "--min_lr must be positive and below --max_lr"),
        (["find_lr", "--steps=3"], "--steps must be 10 to 100000, got 3"),
        (["find_lr", "--plot=no/rates.png"], "--plot must name a PNG file in a folder that exists"),
        (["find_lr", "--plot=rates.pdf"], "--plot must name a PNG file"),
        (["find_lr", "--name=x"], "leave --name out: a finder keeps no run"),
        (["find_lr", "--ckpt_path=last"], "leave --ckpt_path out"),
        (["find_lr", "--model.norms=none"], "unknown key 'norms', did you mean 'norm'?"),
        (["find_lr", "--max_lr=2e-6"], "the loss does not fall between 1e-06 and 2e-06"),
        (["find_batch_size", "--min_size=0"], "--min_size must be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    synthetic: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *flags = words
    with pytest.raises(SystemExit) as end:
        main([program, "--model=MLP", "--model.weight_std=0", *synthetic, *flags])
    assert end.value.code == 2
    error = capsys.readouterr().err.removeprefix("loading PyTorch and Lightning\n")
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not [*tmp_path.glob("*.png"), *tmp_path.glob("runs*")]
