import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from lightning_modules import FineTuned
from tests.conftest import Cli, mark_slow

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
        ("regnet_x_400mf", 128, ""),
        *mark_slow(
            [
                ("vit_b_32", 224, ""),
                ("inception_v3", 128, "Kernel size: (5 x 5)"),
                ("maxvit_t", 128, "is invalid for input of size"),
                ("swin_t", 128, ""),
            ]
        ),
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


@pytest.mark.slow
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


SQUEEZE = ["--model=FineTuned", "--model.architecture=squeezenet1_1", "--model.image_size=32"]


def test_a_checkpoint_of_this_project_starts_a_fit_of_other_classes(
    fit: Cli, tmp_path: Path
) -> None:
    trained = fit(*SQUEEZE, "--data.batch_size=20")
    path = trained.path / "last.ckpt"
    theirs = torch.load(path, weights_only=True)["state_dict"]
    model = FineTuned("squeezenet1_1", weights=str(path), image_size=32, num_classes=7)
    model.setup("fit")
    ours = model.state_dict()
    assert {key for key in ours if ours[key].shape != theirs[key].shape} == {
        "network.classifier.1.weight",
        "network.classifier.1.bias",
    }
    assert torch.equal(ours["network.features.0.weight"], theirs["network.features.0.weight"])


@pytest.mark.slow
def test_a_run_goes_on_where_the_file_is_gone(fit: Cli, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    saved(path, "squeezenet1_1")
    fit(*SQUEEZE, "--data.batch_size=20", f"--model.weights={path}")
    path.unlink()
    gone_on = fit("--resume", "--trainer.max_steps=5")
    assert (gone_on.fields["status"], gone_on.summary["train/steps"]) == ("finished", 5)


def test_a_wrong_file_is_an_error_before_there_is_a_run(
    error_of: Callable[[list[str]], str], synthetic: list[str], runs: Path, tmp_path: Path
) -> None:
    saved(tmp_path / "weights.pth", "resnet18")
    flags = [f"--model.weights={tmp_path / 'weights.pth'}", f"--runs_dir={runs}"]
    message = error_of(["fit", *SQUEEZE, *synthetic, *flags, "--trainer.logger=false"])
    assert "weights.pth is not of a squeezenet1_1: " in message
    assert not runs.exists()


def test_a_run_is_tested_and_goes_on_without_the_file(
    fit: Cli, evaluate: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    saved(path, "squeezenet1_1")
    trained = fit(*SQUEEZE, "--data.batch_size=20", f"--model.weights={path}")
    before = torch.load(trained.path / "last.ckpt", weights_only=True)["state_dict"]
    path.unlink()
    assert "test/acc" in evaluate("test").summary
    # A file of other weights must not replace what was learned.
    saved(path, "squeezenet1_1", classes=7)
    fit(
        "--name=run",
        "--ckpt_path=last",
        "--trainer.max_steps=5",
        "--model.optimizer.init_args.lr=0",
    )
    after = torch.load(trained.path / "last.ckpt", weights_only=True)["state_dict"]
    first = "network.features.0.weight"
    assert torch.equal(before[first], after[first])


@pytest.mark.slow
def test_googlenet_trains_with_its_auxiliary_classifiers(tmp_path: Path) -> None:
    saved(tmp_path / "weights.pth", "googlenet")
    model = FineTuned("googlenet", weights=str(tmp_path / "weights.pth"), image_size=96)
    model.setup("fit")
    assert model.train()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


State = dict[str, Any]


def named(before: str) -> Callable[[State], State]:
    return lambda state: {f"{before}{key}": value for key, value in state.items()}


def below(key: str) -> Callable[[State], State]:
    return lambda state: {key: state, "epoch": 3}


def averaged(state: State) -> State:
    return {"n_averaged": torch.tensor(3), **named("module.")(state)}


def within(state: State) -> State:
    """A part that was wrapped by itself, as of AlexNet's own training program."""
    return {key.replace("features.", "features.module."): value for key, value in state.items()}


TAKEN: dict[str, Callable[[State], Any]] = {
    **{
        before: named(before)
        for before in (
            "module.",
            "_orig_mod.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "model.",
            "net.",
            "backbone.",
            "model.backbone._orig_mod.",
            "_fsdp_wrapped_module.",
            "my.own.",
        )
    },
    **{
        key: below(key)
        for key in ("state_dict", "model", "model_state_dict", "model_ema", "anything")
    },
    "averaged": lambda state: {"model_ema": averaged(state)},
    "nested": lambda state: {"model": {"state_dict": named("module.")(state)}, "optimizer": {}},
    "a part": within,
    "a compiled part": lambda state: {
        key.replace("features.", "features._orig_mod."): value for key, value in state.items()
    },
    "with a decoder": lambda state: {**named("encoder.")(state), "decoder.weight": torch.ones(3)},
    "another head": lambda state: {
        **{key: value for key, value in state.items() if not key.startswith("classifier")},
        "classifier.1.0.weight": torch.ones(3, 4),
    },
    "no head": lambda state: {k: v for k, v in state.items() if not k.startswith("classifier")},
    "torchvision": lambda state: {
        "model": state,
        "optimizer": {"state": {}, "param_groups": []},
        "args": argparse.Namespace(lr=0.1),
    },
    "parameters": lambda state: {key: nn.Parameter(value) for key, value in state.items()},
    "double": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("form", TAKEN)
def test_weights_are_taken_in_the_forms_that_programs_save(tmp_path: Path, form: str) -> None:
    state = saved(tmp_path / "weights.pth", "squeezenet1_1", classes=7)
    torch.save(TAKEN[form](state), tmp_path / "weights.pth")
    model = FineTuned("squeezenet1_1", weights=str(tmp_path / "weights.pth"), image_size=32)
    model.setup("fit")
    ours = model.network.state_dict()
    assert all(
        torch.equal(ours[key], value) for key, value in state.items() if "classifier" not in key
    )
    assert ours["classifier.1.bias"].shape == (10,)


def test_counts_that_were_cast_with_the_weights_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = saved(path, "shufflenet_v2_x0_5")
    torch.save({key: value.half() for key, value in state.items()}, path)
    model = FineTuned("shufflenet_v2_x0_5", weights=str(path), image_size=32)
    model.setup("fit")
    counts = {k: v for k, v in state.items() if k.endswith("num_batches_tracked")}
    assert counts
    ours = model.network.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in counts.items())
    torch.save(state | {next(iter(counts)): torch.tensor(0.5)}, path)
    with pytest.raises(ValueError, match=r"num_batches_tracked is a tensor of torch.float32"):
        FineTuned("shufflenet_v2_x0_5", weights=str(path), image_size=32).setup("fit")


def test_weights_are_loaded_once(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    saved(path, "squeezenet1_1")
    model = FineTuned("squeezenet1_1", weights=str(path), image_size=32)
    model.prepare_fit(goes_on=False)
    path.unlink()
    model.setup("fit")


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda s: {**named("student.")(s), **named("teacher.")(s)}, r"2 of them .student, teache"),
        (lambda s: {"generator": s, "critic": s}, "it holds several, generator, critic, save one"),
        (lambda s: {**s, "epoch": 3}, "is no state dict: its 'epoch' is a int"),
        (lambda s: {"optimizer": {"state": {}}}, "is no state dict: its 'optimizer' is a dict"),
        (lambda s: {}, "is no state dict: it holds a dict"),
        (lambda s: [*s.values()], "is no state dict: it holds a list"),
        (lambda s: dict(enumerate(s.values())), "is no state dict: its 0 is a Tensor"),
        (
            lambda s: s | {"features.0.bias": torch.ones(3)},
            r"features.0.bias has shape \(3,\), and \(64,\) in the network",
        ),
        (
            lambda s: {**s, "features.0.bias": torch.full((64,), torch.nan)},
            "not finite",
        ),
        (
            lambda s: {**s, "features.0.bias": torch.ones(64, device="meta")},
            r"features.0.bias is a tensor of .* on meta",
        ),
        (
            lambda s: {**s, "features.0.bias": torch.ones(64, dtype=torch.int8)},
            "is a tensor of torch.int8",
        ),
        (
            lambda s: {**s, "features.0.gain": torch.ones(3)},
            "features.0.gain is not in the network",
        ),
        (
            lambda s: {k: v for k, v in s.items() if k != "features.12.squeeze.bias"},
            "features.12.squeeze.bias is missing$|features.12.squeeze.bias is missing;",
        ),
        (lambda s: {"model": s, "model_ema": s}, "it holds several, model, model_ema, save one"),
        (lambda s: {"model": s, "ema": named("m.")(s)}, "it holds several, model, ema, save one"),
        (
            lambda s: {"state_dict": {"net": s}, "model": {"state_dict": s}},
            "it holds several, state_dict, model",
        ),
        (lambda s: {**named("_orig_mod.")(s), **s}, "it holds some weights twice"),
        (
            lambda s: {k if ".12." in k else f"module.{k}": v for k, v in s.items()},
            r"features\.12\.\S+ is missing \(it is there as features\.12",
        ),
    ],
)
def test_what_cannot_be_taken_is_named(
    form: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(form(saved(path, "squeezenet1_1")), path)
    model = FineTuned("squeezenet1_1", weights=str(path), image_size=32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as failure:
        model.setup("fit")
    assert len(str(failure.value).splitlines()) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def safetensors(path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def scripted(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)  # type: ignore[no-untyped-call]


def recursive(path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, path)


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
        (pickled, r"holds more than weights and is refused, .*: save its state_dict\(\)"),
        (no_state, "is no state dict"),
        (recursive, "is no state dict"),
        (safetensors, r"is a file of safetensors: convert it with torch\.save\(safetensors"),
        (scripted, r"is a TorchScript model: save its state_dict\(\)"),
        (lambda path: torch.save(nn.Linear(2, 2), path), "is a whole pickled model, and refused"),
        (
            lambda path: torch.save(
                {"model": nn.Linear(2, 2)}, path, _use_new_zipfile_serialization=False
            ),
            "is a whole pickled model, and refused",
        ),
        (lambda path: path.write_text("<!DOCTYPE html>", encoding="utf-8"), "is an HTML page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com"), "git lfs pull"),
        (lambda path: path.write_bytes(b""), "can't be read"),
        (lambda path: path.mkdir(), "weights.pth is no file"),
        (os.mkfifo, "weights.pth is no file"),
        (
            lambda path: saved(path, "squeezenet1_0"),
            r"is not of a squeezenet1_1: features\.0\.weight has shape",
        ),
    ],
)
def test_a_wrong_file_is_one_line(
    make: Callable[[Path], None],
    message: str,
    tmp_path: Path,
) -> None:
    make(tmp_path / "weights.pth")
    model = FineTuned("squeezenet1_1", weights=str(tmp_path / "weights.pth"))
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
