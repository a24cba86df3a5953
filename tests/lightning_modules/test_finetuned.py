from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import models

from lightning_modules import FineTuned
from tests.conftest import Cli

SMALL = ["--model=FineTuned", "--model.image_size=32", "--data.batch_size=20"]


def saved(path: Path, architecture: str, classes: int = 1000) -> dict[str, Tensor]:
    """Weights as torchvision would distribute them, but random and so never downloaded."""
    torch.manual_seed(1)
    state: dict[str, Tensor] = models.get_model(
        architecture, weights=None, num_classes=classes
    ).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("squeezenet1_1", "classifier.1"),
        ("densenet121", "classifier"),
    ],
)
def test_all_but_the_last_layer_comes_from_the_file(
    tmp_path: Path, architecture: str, head: str
) -> None:
    state = saved(tmp_path / "weights.pth", architecture)
    model = FineTuned(architecture, weights=str(tmp_path / "weights.pth"), image_size=64)
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    model.setup("fit")
    after = model.network.state_dict()
    for key, value in after.items():
        expected = before[key] if key.rpartition(".")[0] == head else state[key]
        assert torch.equal(value, expected), key
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("architecture", "size", "fits"),
    [
        ("vit_b_32", 128, "Expected 224 but got 128"),
        ("vit_b_32", 224, ""),
        ("inception_v3", 128, "Kernel size: (5 x 5)"),
        ("maxvit_t", 128, "is invalid for input of size"),
        ("regnet_x_400mf", 128, ""),
        ("swin_t", 128, ""),
    ],
)
def test_a_size_that_a_network_does_not_take_is_one_line(
    architecture: str, size: int, fits: str
) -> None:
    if not fits:
        FineTuned(architecture, image_size=size)
        return
    with pytest.raises(
        ValueError, match=r"no images of 128 pixels .*try --model\.image_size 224"
    ) as e:
        FineTuned(architecture, image_size=size)
    assert fits in str(e.value)
    assert "\n" not in str(e.value)


def test_the_old_names_of_densenets_are_understood(tmp_path: Path) -> None:
    state = saved(tmp_path / "new.pth", "densenet121")
    old = {
        key.replace("norm1", "norm.1").replace("conv1", "conv.1")
        if "denselayer" in key
        else key: value
        for key, value in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    model = FineTuned("densenet121", weights=str(tmp_path / "old.pth"))
    model.setup("fit")
    key = "features.denseblock1.denselayer1.norm1.weight"
    assert torch.equal(model.network.state_dict()[key], state[key])


def test_frozen_layers_keep_their_weights_and_statistics(fit: Cli, tmp_path: Path) -> None:
    state = saved(tmp_path / "weights.pth", "resnet18")
    weights = f"--model.weights={tmp_path / 'weights.pth'}"
    record = fit(*SMALL, weights, "--model.freeze=true", "--trainer.precision=32-true")
    checkpoint = torch.load(record.path / "last.ckpt", weights_only=True)["state_dict"]
    assert all(
        torch.equal(checkpoint[f"network.{key}"], value)
        for key, value in state.items()
        if not key.startswith("fc.")
    )
    assert checkpoint["network.fc.bias"].shape == (10,)


def test_a_run_is_tested_and_goes_on_without_the_file(
    fit: Cli, evaluate: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    saved(path, "resnet18")
    trained = fit(*SMALL, f"--model.weights={path}")
    before = torch.load(trained.path / "last.ckpt", weights_only=True)["state_dict"]
    path.unlink()
    assert "test/acc" in evaluate("test").summary
    saved(path, "resnet18", classes=7)  # a file of other weights must not replace what was learned
    fit(
        "--name=run",
        "--ckpt_path=last",
        "--trainer.max_steps=5",
        "--model.optimizer.init_args.lr=0",
    )
    after = torch.load(trained.path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(before["network.conv1.weight"], after["network.conv1.weight"])


def test_googlenet_trains_with_its_auxiliary_classifiers(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth", "googlenet")
    model = FineTuned("googlenet", weights=str(tmp_path / "weights.pth"), image_size=96)
    model.setup("fit")
    assert model.train()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def broken(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 not a file of torch")


def pickled(path: Path) -> None:
    torch.save({"run": print}, path)


def nothing(path: Path) -> None:
    pass


def no_state(path: Path) -> None:
    torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nothing, "no weights .*; name a state dict of torchvision with --model.weights"),
        (broken, "can't be read: .*--model.weights"),
        (pickled, "holds more than weights and is refused"),
        (no_state, "is no state dict"),
        (lambda path: saved(path, "resnet34"), "is not of a resnet18: .* differs"),
    ],
)
def test_a_wrong_file_is_one_line(
    make: Callable[[Path], None],
    message: str,
    tmp_path: Path,
) -> None:
    make(tmp_path / "weights.pth")
    model = FineTuned("resnet18", weights=str(tmp_path / "weights.pth"))
    with pytest.raises(ValueError, match=message) as failure:
        model.setup("fit")
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "resnet17"}, "no architecture 'resnet17'; there are alexnet"),
        ({"image_size": 8}, "must be at least 32, got 8"),
        ({"freeze": True}, "name a file"),
    ],
)
def test_bad_options_are_errors(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FineTuned(**options)  # type: ignore[arg-type]
