from pathlib import Path

import pytest
import torch
from torch import nn

from experiments.monitoring.probes import activation_statistics
from tests.conftest import Cli

CURVE = "--trainer.callbacks+=experiments.CurveOnTest"
ACTIVATIONS = "--trainer.callbacks+=experiments.ActivationStatistics"


def test_the_curve_ends_at_the_test(fit: Cli) -> None:
    record = fit("--model=MLP", CURVE, "--data.val_size=0", "--test_after_fit=true")
    points = {e["step"]: e["test_curve/acc"] for e in record.metrics() if "test_curve/acc" in e}
    assert list(points) == [2, 4]
    assert points[4] == pytest.approx(record.summary["test/acc"])
    assert record.summary["test_curve/loss"] == pytest.approx(record.summary["test/loss"], rel=1e-5)


def test_watching_changes_nothing(fit: Cli) -> None:
    norm = ["--model=MLP", "--model.norm=batch", "--data.val_size=0"]
    seen = fit(*norm, CURVE, ACTIVATIONS, name="seen")
    blind = fit(*norm, name="blind")
    weights = [
        torch.load(record.path / "last.ckpt", weights_only=True)["state_dict"]
        for record in (seen, blind)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_a_validation_split_is_refused_before_anything_trains(
    fit: Cli, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        fit("--model=MLP", CURVE)
    assert "a checkpoint would be chosen; set --data.val_size 0" in capsys.readouterr().err
    assert not (runs / "run").exists()


def test_activations_are_measured_before_and_after(fit: Cli) -> None:
    record = fit("--model=MLP", "--model.hidden_units=[8,8]", ACTIVATIONS)
    steps = [e["step"] for e in record.metrics() if "activations/2/mean" in e]
    assert steps == [0, 4]


def test_the_statistics_are_those_of_the_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ELU(), nn.Linear(5, 4), nn.Tanh())
    images = torch.randn(50, 3, 2, 2)
    found = activation_statistics(model, images)
    first = model[1](images.flatten(1))
    second = model[3](nn.functional.elu(first))
    assert found["activations/1/mean"] == pytest.approx(nn.functional.elu(first).mean().item())
    assert found["activations/2/std"] == pytest.approx(second.tanh().std().item())
    slope = torch.where(first > 0, 1.0, first.exp()).mean().item()
    assert found["activations/1/gradient"] == pytest.approx(slope)
    assert found["activations/2/gradient"] == pytest.approx(
        (1 - second.tanh() ** 2).mean().item(), rel=1e-5
    )
    assert len(found) == 6
    assert model.training
