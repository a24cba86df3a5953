"""Models that are compiled, exported, copied and pickled: each does it, or refuses in a line."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor

from datamodules import BatchSource
from lightning_modules import CNN, MLP, Classifier, FastCNN, FineTuned, NumPyMLP
from tests.conftest import mark_slow

Model = Callable[[], Classifier]
MODELS: dict[str, Model] = {
    "MLP": lambda: MLP(hidden_units=[5]),
    "batch": lambda: MLP(hidden_units=[5], norm="batch"),
    "layer_native": lambda: MLP(hidden_units=[5], norm="layer_native"),
    "FastCNN": lambda: FastCNN(widths=(4, 4, 4)),
    "FineTuned": lambda: FineTuned("squeezenet1_1", image_size=32),
    "CNN": CNN,
}
QUICK = mark_slow(MODELS, except_for=MODELS.keys() - {"FineTuned", "CNN"})
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def script(model: Any) -> Any:
    return model.to_torchscript()


def trace(model: Any) -> Any:
    return model.to_torchscript(method="trace")


def trace_around(model: Any) -> Any:
    def call(images: Tensor) -> Any:
        return model(images)

    return torch.jit.trace(call, IMAGES)  # type: ignore[no-untyped-call]


def export(model: Any) -> Any:
    return torch.export.export(model, (IMAGES,)).module()


def fx(model: Any) -> Any:
    return torch.fx.symbolic_trace(model)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {way.__name__: way for way in (script, trace, fx, copy.deepcopy, pickled, saved)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*deprecated:UserWarning")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", QUICK)
@torch.no_grad()
def test_a_model_that_was_exported_computes_the_same(kind: str, way: str) -> None:
    torch.manual_seed(-1)  # the largest seed there is: more than TorchScript's integers hold
    model = MODELS[kind]().eval()
    torch.testing.assert_close(WAYS[way](model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", mark_slow(MODELS, except_for={"MLP"}))
@torch.no_grad()
def test_torch_export_computes_the_same(kind: str) -> None:
    model = MODELS[kind]().eval()
    torch.testing.assert_close(export(model)(IMAGES), model(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*MODELS, "NumPyMLP"])
def test_pixels_are_refused_by_a_model_alone(kind: str) -> None:
    model = MODELS.get(kind, NumPyMLP)().eval()
    pixels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    message = r"expected normalised images, floats .*, got uint8: .* experiments.load\(CHECKPOINT\)"
    calls: list[Callable[[Tensor], Any]] = [model, model.evaluate]
    for call in calls:
        with pytest.raises(TypeError, match=f"^{type(model).__name__} {message}"):
            call(pixels)


@pytest.mark.parametrize("way", [script, trace, trace_around, fx])
def test_numpy_is_not_traced(way: Callable[[Any], Any]) -> None:
    """A trace would hold the answer to one batch for ever."""
    with pytest.raises(TypeError, match="can't be traced or compiled: load"):
        way(NumPyMLP(hidden_units=[5]).eval())
    pickled(NumPyMLP(hidden_units=[5]))(IMAGES)


def test_a_pickled_model_that_lost_its_optimizer_says_so() -> None:
    lost = pickled(MLP(hidden_units=[5], optimizer=lambda p: torch.optim.SGD(p, lr=0.1)))
    with pytest.raises(ValueError, match="build the model again and load the state_dict"):
        lost.configure_optimizers()
    kept = pickled(MLP(hidden_units=[5], optimizer=torch.optim.SGD))
    assert isinstance(kept.configure_optimizers(), torch.optim.SGD)


class Data(LightningDataModule):
    """Twenty batches of four images."""

    images = torch.randn(80, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(80) % 10

    def train_dataloader(self) -> BatchSource:
        return BatchSource(self.images, self.labels, batch_size=4)

    val_dataloader = test_dataloader = train_dataloader

    def training_sample(self, count: int) -> Tensor:
        return self.images[:count]


def train(model: Any) -> dict[str, Any]:
    quiet: dict[str, Any] = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    trainer = Trainer(
        accelerator="cpu", max_epochs=2, enable_checkpointing=False, log_every_n_steps=3, **quiet
    )
    trainer.fit(model, datamodule=Data())
    trainer.test(model, datamodule=Data(), verbose=False)
    return trainer.callback_metrics


@pytest.mark.parametrize(
    ("make", "graphs"),
    [
        (MODELS["MLP"], 3),  # a step of training, of validation and of test: each once
        pytest.param(lambda: MLP(hidden_units=[5], norm="layer"), 3, marks=pytest.mark.slow),
        # ... with images of 24, of 28 and of all pixels, and with the bias frozen from then on
        pytest.param(lambda: FastCNN((4, 4, 4), small_until=0.5), 6, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_is_compiled_once(make: Model, graphs: int) -> None:
    seen: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph.forward

    torch.manual_seed(0)
    expected = train(make())
    torch.manual_seed(0)
    torch._dynamo.reset()
    found = train(torch.compile(make(), backend=backend))
    assert len(seen) == graphs
    assert {k: v.item() for k, v in found.items()} == pytest.approx(
        {k: v.item() for k, v in expected.items()}, rel=1e-5
    )


def test_numpy_is_not_compiled() -> None:
    with pytest.raises(ValueError, match=r"leave torch\.compile out"):
        train(torch.compile(NumPyMLP(hidden_units=[5])))
