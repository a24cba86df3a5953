"""The fast network: its size, its whitening, its views, and when its first bias stops learning."""

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import BatchSource
from experiments.records.record import RunRecord
from lightning_modules import FastCNN
from tests.conftest import Cli

SMALL: dict[str, Any] = {"widths": (4, 8, 8)}
FIT = ["--model=FastCNN", "--model.widths=[4,8,8]", "--data.normalization=channel"]


def test_number_of_parameters() -> None:
    model = FastCNN()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == 1_971_352
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_convolutions_begin_as_the_identity() -> None:
    for convolution in (m for m in FastCNN(**SMALL).groups.modules() if isinstance(m, nn.Conv2d)):
        x = torch.randn(1, convolution.in_channels, 5, 5)
        kept = min(convolution.in_channels, convolution.out_channels)
        torch.testing.assert_close(convolution(x)[:, :kept], x[:, :kept])


def test_whitened_patches_have_unit_second_moments() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(50, 3, 16, 16).cumsum(3) / 4  # neighbours alike, as in images
    model = FastCNN(**SMALL)
    model.whiten_with(mixed)
    found = nn.functional.conv2d(mixed, model.whiten.weight)
    assert torch.equal(found[:, 12:], -found[:, :12])
    values = found[:, :12].transpose(0, 1).flatten(1)
    moments = values @ values.T / values.shape[1]
    assert moments.diag().max() < 1.001
    assert moments.diag().min() > 0.9  # eps takes a little from the smallest
    assert (moments - moments.diag().diag()).abs().max() < 1e-2


def logits_of(model: FastCNN, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model.evaluate(images)


def test_two_views_do_not_tell_an_image_from_its_mirror_image() -> None:
    torch.manual_seed(0)
    model, images = FastCNN(views="mirror", **SMALL), torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(logits_of(model, images), logits_of(model, images.flip(3)))
    model.views = "one"
    assert not torch.allclose(logits_of(model, images), logits_of(model, images.flip(3)))


def test_six_views_are_weighted() -> None:
    torch.manual_seed(0)
    model, images = FastCNN(views="six", **SMALL), torch.randn(3, 3, 32, 32)
    model.eval()
    padded = nn.functional.pad(images, [1] * 4, mode="reflect")
    corners = padded[:, :, :32, :32], padded[:, :, 2:, 2:]
    with torch.no_grad():
        expected = (model(images) + model(images.flip(3))) / 4
        for corner in corners:
            expected += (model(corner) + model(corner.flip(3))) / 8
    torch.testing.assert_close(logits_of(model, images), expected)


def test_a_test_also_tells_the_accuracy_of_one_view(fit: Cli, evaluate: Cli) -> None:
    fit(*FIT)
    options = ["--ckpt_path=last", "--trainer.logger=false"]
    both = dict(evaluate("test", *options).summary)
    aside = evaluate("test", *options, "--model.views=one").evaluations
    (single,) = [entry for entry in aside.values() if "model.views" in entry["differs"]]
    assert both["test/acc_one_view"] == single["acc"]


def weights_of(run: RunRecord) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(run.path / "last.ckpt", weights_only=True)["state_dict"]
    return state


def test_training_whitens_and_freezes_the_bias_midway(fit: Cli) -> None:
    biases = []
    for until in (0.0, 0.5, 1.0):
        option = f"--model.whiten_bias_until={until}"
        state = weights_of(fit(*FIT, option, name=f"until-{until}"))
        assert state["whitened"]
        assert state["whiten.weight"].norm() > 1
        biases.append(state["whiten.bias"].norm().item())
    assert biases[0] == 0
    assert 0 < biases[1] != biases[2]


@pytest.mark.parametrize(
    ("processes", "training", "learns"),
    [(1, True, False), (2, True, True), (1, False, True)],  # processes share its gradient
)
def test_the_frozen_bias_gets_no_gradient_in_training(
    processes: int, training: bool, learns: bool
) -> None:
    model: Any = FastCNN(**SMALL, whiten_bias_until=0.5).train(training)
    place = {"global_step": 5, "current_epoch": 0, "global_rank": 0}
    model.trainer, model._steps = SimpleNamespace(world_size=processes, **place), 10
    images = torch.randn(2, 3, 32, 32)
    model.on_train_batch_start((images,), 0)
    model(images).sum().backward()
    assert (model.whiten.bias.grad is not None) is learns


def test_images_grow_early_in_training(fit: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    forward = FastCNN.forward

    def noting(self: FastCNN, images: Tensor) -> Tensor:
        trainer = self.trainer_if_any()
        computes = images.device.type != "meta"  # otherwise its operations are counted
        if computes and self.training and trainer is not None and trainer.training:
            sizes.append(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(FastCNN, "forward", noting)
    fit(*FIT, "--model.small_until=0.75", "--model.small_size=20")
    assert sizes == [20, 24, 28, 32]


def test_reduced_images_are_means_not_samples() -> None:
    model, images = FastCNN(**SMALL, small_size=16, small_until=1.0), torch.randn(2, 3, 32, 32)
    expected = F.interpolate(images, (16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.reduce(images, 0.0), expected)
    assert torch.equal(model.reduce(images, 1.0), images)


def test_the_first_weights_and_the_share_of_a_batch_are_the_papers() -> None:
    torch.manual_seed(0)
    model = FastCNN(bn_momentum=0.3)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.momentum, norm.eps) for norm in norms} == {(0.3, 1e-12)}
    assert model.head.weight.std().item() == pytest.approx(1 / 256, rel=0.1)


def test_filters_of_a_checkpoint_are_not_made_anew() -> None:
    model: Any = FastCNN(**SMALL)
    model.whiten_with(torch.randn(50, 3, 16, 16))
    before = model.whiten.weight.clone()
    model.trainer = SimpleNamespace(max_steps=10, max_epochs=-1)  # it has no data to whiten with
    model.on_train_start()
    assert torch.equal(model.whiten.weight, before)


def test_one_view_and_six_count_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.arange(4)

    def evaluate(self: Any, images: Tensor) -> Tensor:
        self._plain = F.one_hot(labels, 10).float()  # right; together, all views are wrong
        return F.one_hot(labels + 1, 10).float()

    monkeypatch.setattr(FastCNN, "evaluate", evaluate)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    data = BatchSource(torch.zeros(4, 3, 32, 32), labels, batch_size=4)
    (found,) = trainer.test(FastCNN(**SMALL), data, verbose=False)
    assert (found["test/acc"], found["test/acc_one_view"]) == (0, 1)


@pytest.mark.parametrize("size", [16, 17, 24, 31, 32])
def test_every_size_leaves_a_pixel(size: int) -> None:
    model = FastCNN(small_size=size, **SMALL)
    model.small_until = 1.0
    reduced = model.reduce(torch.zeros(2, 3, 32, 32), 0.0)
    assert reduced.shape[2:] == (size, size)
    assert model(reduced).shape == (2, 10)


def gradients_of(model: FastCNN, images: Tensor) -> dict[str, Tensor]:
    model(images).square().sum().backward()
    return {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


def test_winograd_changes_the_last_digits_alone() -> None:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    native = FastCNN(widths=(64, 64, 64), convolution="native")
    ours = FastCNN(widths=(64, 64, 64), convolution="winograd")
    ours.load_state_dict(native.state_dict())
    expected = gradients_of(native, images)
    for name, gradient in gradients_of(ours, images).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3)
    assert not torch.equal(ours(images), native(images))  # it was used


def test_fused_layers_change_the_last_digits_alone() -> None:
    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    native = FastCNN(widths=(16, 16, 16), fused=False)
    ours = FastCNN(widths=(16, 16, 16), fused=True)
    ours.load_state_dict(native.state_dict())
    assert str(ours) == str(native)
    expected = gradients_of(native, images)
    for name, gradient in gradients_of(ours, images).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-3)
    buffers = dict(native.named_buffers())
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, buffers[name], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.eval()(images), native.eval()(images), atol=1e-4, rtol=1e-4)


def test_a_hook_of_a_fused_layer_is_called() -> None:
    model = FastCNN(widths=(4, 4, 4), fused=True)
    images = torch.randn(4, 3, 32, 32)
    seen: list[int] = []
    model(images)
    assert not seen
    next(m for m in model.groups.modules() if isinstance(m, nn.GELU)).register_forward_hook(
        lambda *_: seen.append(1)
    )
    model(images)
    assert seen == [1]


@pytest.mark.parametrize(
    "change",
    [
        lambda group: (group[2].eval(), group[5].eval()),
        lambda group: setattr(group[2], "momentum", None),
        lambda group: group.__setitem__(2, nn.BatchNorm2d(64, track_running_stats=False)),
        lambda group: group.__setitem__(3, nn.ReLU()),
        lambda group: group.__setitem__(1, nn.AvgPool2d(2)),
        lambda group: group.append(nn.Tanh()),
        lambda group: setattr(group[6], "approximate", "tanh"),
        lambda group: setattr(group[1], "stride", 1),
        lambda group: setattr(group[2], "num_batches_tracked", None),
        lambda group: setattr(group[6], "forward", torch.sin),
    ],
)
def test_a_changed_group_computes_what_stands_in_it(change: Callable[[Any], Any]) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 32, 32)
    ours, plain = (FastCNN(widths=(64, 64, 64), fused=fused) for fused in (True, False))
    ours.load_state_dict(plain.state_dict())
    for model in (ours, plain):
        torch.manual_seed(0)
        change(model.groups[0])
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-3, atol=1e-4)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, dict(plain.named_buffers())[name], rtol=1e-3, atol=1e-4)


def test_a_part_of_a_group_can_be_taken() -> None:
    group: Any = FastCNN(widths=(4, 4, 4)).groups[0]
    assert list(group[:3]) == list(group)[:3]
    assert group[-1] is list(group)[-1]


def test_a_recorded_network_in_training_computes_the_same() -> None:
    images = torch.randn(16, 3, 32, 32)
    torch.manual_seed(0)
    model: Any = FastCNN(widths=(64, 64, 64))
    recorded = torch.fx.symbolic_trace(copy.deepcopy(model))
    torch.testing.assert_close(recorded(images), model(images), rtol=1e-3, atol=1e-4)
    expected = dict(model.named_buffers())
    for name, buffer in recorded.named_buffers():
        torch.testing.assert_close(buffer, expected[name], rtol=1e-3, atol=1e-4)
    assert copy.deepcopy(model).groups[0]._fuses(images)


def test_fused_layers_leave_synchronised_batch_norms_to_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
    model = convert(FastCNN(widths=(4, 4, 4), fused=True))
    monkeypatch.setattr("lightning_modules.fast_cnn.batch_norm_gelu", None)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_fit_with_our_kernels_is_repeated_to_the_last_digit(fit: Cli) -> None:
    options = ["--model=FastCNN", "--model.widths=[64,64,64]", "--model.convolution=winograd"]
    options += ["--model.fused=true", "--data.batch_size=20"]
    one, other = (fit(*options, f"--overwrite={again}") for again in ("false", "true"))
    assert one.summary["train/weights_sha256"] == other.summary["train/weights_sha256"]


def test_an_unknown_convolution_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.convolution must be winograd or native, got fft"):
        FastCNN(convolution="fft")  # type: ignore[arg-type]


def test_the_convolutions_are_compiled_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[nn.Module] = []

    def note(self: nn.Module) -> None:
        asked.append(self)

    monkeypatch.setattr(nn.Sequential, "compile", note)
    FastCNN(**SMALL)
    model = FastCNN(**SMALL, compiled=True)
    assert asked == [model.groups]


@pytest.mark.slow
def test_a_compiled_model_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    eager, compiled = FastCNN(**SMALL), FastCNN(**SMALL, compiled=True)
    compiled.load_state_dict(eager.state_dict())
    images = torch.randn(8, 3, 32, 32)
    expected = gradients_of(eager, images)
    for name, gradient in gradients_of(compiled, images).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


def test_a_resumed_fit_keeps_its_first_filters(fit: Cli) -> None:
    first = weights_of(fit(*FIT, "--trainer.max_steps=2"))
    second = weights_of(fit(*FIT, "--ckpt_path=last"))
    assert torch.equal(first["whiten.weight"], second["whiten.weight"])
    assert not torch.equal(first["head.weight"], second["head.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": "ten"}, "model.views must be one, mirror or six, got ten"),
        ({"widths": (4, 0, 4)}, "model.widths must be positive"),
        ({"small_size": 15}, "model.small_size must be 16 to 32 pixels, got 15"),
        ({"small_until": 2.0}, "model.small_until must be a part of training, 0 to 1, got 2.0"),
        ({"whiten_bias_until": -0.1}, "model.whiten_bias_until must be a part of training"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastCNN(**options)
