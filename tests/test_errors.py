import functools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer

from datamodules import CIFAR10DataModule
from datamodules.batches import Splits
from datamodules.files import ImageSet
from datamodules.sources import make_synthetic
from tests.conftest import Cli, mark_slow, short_fit

ErrorOf = Callable[[list[str]], str]
MLP = "--model=MLP"


@pytest.fixture
def refused(
    error_of: ErrorOf, synthetic: list[str], runs: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Runs a command that must end in one line before anything is trained, loaded or written."""

    def forbid(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)  # its arguments are the command's flags
        def forbidden(*args: Any, **kwargs: Any) -> NoReturn:
            raise AssertionError("the trainer was started")

        return forbidden

    for name in ("fit", "validate", "test", "predict"):
        monkeypatch.setattr(Trainer, name, forbid(getattr(Trainer, name)))

    def run(*args: str, command: str = "fit") -> str:
        models = [arg for arg in args if arg.startswith(("--config=", "--model="))]
        flags = [arg for arg in args if arg not in models]
        places = [f"--runs_dir={runs}", "--trainer.logger=false"]
        message = error_of([command, *models, *synthetic, *places, *flags])
        assert not runs.exists()
        return message

    return run


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "near"),
    [
        ("--model.hiden_units=[3]", "hidden_units"),
        ("--model.init_args.hiden_units=[3]", "hidden_units"),
        ("--trainer.max_stepz=3", "trainer.max_steps"),
        ("--data.batchsize=3", "batch_size"),
        ("--model.optimizer.momentm=0.9", "momentum"),
        ("--modle.lr=3", "model.lr"),
        ("--test_after_fitt=true", "test_after_fit"),
    ],
)
def test_an_unknown_flag_names_the_nearest(
    flag: str, near: str, refused: Callable[..., str]
) -> None:
    assert re.fullmatch(rf"unknown key '.+', did you mean '{near}'\?", refused(MLP, flag))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("trainr: {max_steps: 3}", "unknown key 'trainr.max_steps', did you mean 'trainer"),
        (
            "model: {class_path: lightning_modules.MLP, init_args: {hiden_units: [3]}}",
            "unknown key 'hiden_units', did you mean 'hidden_units'",
        ),
        (
            "model: {class_path: lightning_modules.MPL}",
            "lightning_modules has no MPL, did you mean MLP",
        ),
        (
            "model: {class_path: lightning_modules.MLP, init_args: {hidden_units: many}}",
            "hidden_units: expected list, got many",
        ),
        ("trainer:\n\tmax_steps: 3\n", r"config\.yaml, line 2: not YAML"),
        ("model:\n  class_path: lightning_modules.MLP\n init_args: [\n", r"config\.yaml, line 3"),
        (
            "data:\n  crop: 4\n  flip: none\n  crop: 2\n",
            r"line 4: 'crop' is there twice.* line 2",
        ),
        ("data: {crop: 4, crop: 4}", r"config\.yaml, line 1: 'crop' is there twice"),
        ("data: &all\n  crop: *all\n", r"config\.yaml, line 1: an alias that contains itself"),
        ("a: !!python/object/apply:os.getcwd []", r"line 1: the tag .*getcwd is refused"),
        ("? [1, 2]\n: 3\n", r"config\.yaml, line 1: a key must be a word"),
        ("trainer: 5", r"config\.yaml, line 1: trainer: expected options below it"),
        (
            "trainer.max_steps: 5\ntrainer:\n  max_steps: 7\n",
            r"config\.yaml, line 3: 'trainer.max_steps' is there twice, first in .* line 1",
        ),
        ("a: " + "[" * 2000 + "]" * 2000, r"config\.yaml: no configuration: nested too deeply"),
        (
            "model:\n  class_path: lightning_modules.MLP\n  init_args:\n    optimizer:\n"
            "      class_path: torch.optim.SGD\n      init_args:\n        lr: .inf\n",
            r"model.lr must be finite, got inf \(.*config\.yaml, line 7\)",
        ),
        ("data:\n  crop: many\n", r"data.crop: expected int, got many \(.*config\.yaml, line 2\)"),
        ("data:\n  crop: 99\n", r"data.crop must be 0 to 31 .*, got 99 \(.*yaml, line 2\)"),
        ("trainer:\n  max_stepz: 3", r"'trainer.max_steps'\? \(.*config\.yaml, line 2\)"),
        (
            "\n".join(f"a{i}: &a{i} [{f'*a{i - 1}, ' * 9}]" for i in range(1, 9)).replace(
                "*a0", "1"
            ),
            "too many aliases",
        ),
        ("just words", r"config\.yaml: no configuration"),
        ("", r"config\.yaml: no configuration"),
    ],
)
def test_a_wrong_config_file_is_an_error(
    content: str, message: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert re.search(message, refused(MLP, f"--config={tmp_path / 'config.yaml'}"))


def test_a_flag_is_not_blamed_on_a_config(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data:\n  crop: 4\n")
    message = refused(MLP, f"--config={tmp_path / 'config.yaml'}", "--data.crop=99")
    assert message.endswith("got 99")


def test_a_missing_config_file_is_named(refused: Callable[..., str]) -> None:
    assert re.search(r"File does not exist: '.*nope\.yaml'", refused("--config=nope.yaml"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.devices=99", "trainer.devices must be at most"),
        (
            "--trainer.num_nodes=2",
            "trainer.num_nodes must be 1 here, got 2: several machines need a launcher",
        ),
        ("--trainer.accumulate_grad_batches=0", "accumulate_grad_batches must be at least 1, got"),
        (
            "--trainer.check_val_every_n_epoch=0",
            "check_val_every_n_epoch must be at least 1",
        ),
        (
            "--trainer.val_check_interval=00:00:00:05",
            "val_check_interval must be batches or a part of an epoch",
        ),
        ("--save_every_min=-1", "save_every_min must be positive, got -1"),
        ("--model.lr=1e400", "model.lr must be finite, got inf"),
        ("--data.batch_size=many", "data.batch_size: expected int, got many"),
        ("--data.batch_size=0", "data.batch_size must be at least 1, got 0"),
        ("--data.batch_size=-1", "data.batch_size must be at least 1, got -1"),
        ("--data.batch_size=5000", "batch_size must be at most 900"),
        ("--data.val_size=1000", "val_size must be 0 to 999, got 1000"),
        ("--data.source=mnist", "source: expected one of cifar10, synthetic, auto"),
        ("--model.norm=group", "norm: expected one of none, batch, layer, layer_native"),
        ("--model.activation=gelu", "activation: expected one of elu, relu, tanh"),
        ("--model.hidden_units=[0]", "model.hidden_units must be positive widths, got [0]"),
        ("--model.weight_std=-1", "model.weight_std must not be negative"),
        ("--model.num_classes=5", "model.num_classes is 5, but the data has 10 classes"),
        ("--model.block_order=bn", "no option 'block_order'"),
        ("--model.lr=-1", "model.optimizer: Invalid learning rate: -1.0"),
        ("--model.lr=fast", "model.lr: expected float, got fast"),
        ("--model.optimizer=Addam", "the name of a class, got Addam, did you mean Adam?"),
        ("--model.optimizer=torch.optim.Adm", "torch.optim has no Adm, did you mean Adam?"),
        ("--model.lr_scheduler=StepLn", "lr_scheduler: expected the name of a class, got StepLn, "),
        ("--trainer.callbacks=EarlyStoping", "got EarlyStoping, did you mean EarlyStopping?"),
        ("--trainer.callbacks+=EarlyStoping", "got EarlyStoping, did you mean EarlyStopping?"),
        ("--trainer.callbacks=torch.nn.Linear", "callbacks: torch.nn.Linear is no Callback"),
        ("--trainer.logger=CSVLoger", "got CSVLoger, did you mean CSVLogger?"),
        ("--data=CIFAR11DataModule", "got CIFAR11DataModule, did you mean CIFAR10DataModule?"),
        ("--seed_everything=-1", "seed_everything: expected an integer from 0 to 2^32 - 1, got -1"),
        ("--seed_everything=4294967296", "seed_everything: expected an integer from 0 to 2^32"),
        ("--trainer.max_steps=many", "trainer.max_steps: expected int, got many"),
        ("--trainer.val_check_interval=0", "trainer.val_check_interval must be positive"),
        ("--trainer.val_check_interval=500", "more than the 18 batches of an epoch"),
        ("--trainer.max_steps=0", "trainer.max_steps must be positive, got 0"),
        ("--trainer.max_epochs=0", "trainer.max_epochs must be positive, got 0"),
        ("--trainer.limit_train_batches=0", "trainer.limit_train_batches must be positive"),
        ("--trainer.limit_train_batches=0.01", "0.01 leaves none of 18 batches"),
        ("--trainer.log_every_n_steps=0", "trainer.log_every_n_steps must be at least 1, got 0"),
        ("--trainer.strategy=fast", "trainer.strategy: expected auto, ddp"),
        ("--trainer.accelerator=gqu", "trainer.accelerator: expected cpu, gpu, auto"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val must not be negative"),
        ("--trainer.precision=7", "trainer.precision: expected one of"),
        ("--trainer.logger=wand", "trainer.logger: expected"),
        ("--name=a/b", "must be a plain folder name, got 'a/b'"),
        ("--name=-x", "must be printable and not begin with -, got '-x'"),
        ("--name=a\nb", "must be printable"),
        ("--name=..", "must be a plain folder name, got '..'"),
        ("--name=", "must be a plain folder name, got ''"),
        (f"--name={'n' * 300}", "--name is 300 bytes long; 128 at most"),
    ],
)
def test_a_wrong_value_is_an_error(flag: str, message: str, refused: Callable[..., str]) -> None:
    assert message in refused(MLP, flag)


def test_a_restart_that_would_wait_for_ever_is_an_error(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    elastic = {"RUN_ID": "test", "RESTART_COUNT": "1", "USE_AGENT_STORE": "True"}
    launched |= {f"TORCHELASTIC_{name}": value for name, value in elastic.items()}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    message = refused(MLP, "--trainer.strategy=ddp", "--trainer.devices=2")
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in message


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--trainer.precision=bf16-mixed", "computes in float32: leave --trainer.precision"),
        ("--trainer.gradient_clip_val=1", "leave --trainer.gradient_clip_val out"),
        ("--trainer.accumulate_grad_batches=2", "leave --trainer.accumulate_grad_batches out"),
    ],
)
def test_what_numpy_cannot_do_is_an_error(
    flag: str, message: str, refused: Callable[..., str]
) -> None:
    assert message in refused("--model=NumPyMLP", flag)


@pytest.mark.parametrize(
    ("monitor", "val_size"), [("val/accuracy", 100), ("val/acc", 0)], ids=["unknown", "not here"]
)
def test_a_monitor_of_no_metric_is_an_error(
    monitor: str, val_size: int, refused: Callable[..., str]
) -> None:
    stopping = ["--trainer.callbacks=EarlyStopping", f"--trainer.callbacks.monitor={monitor}"]
    message = refused(MLP, *stopping, f"--data.val_size={val_size}")
    assert f"EarlyStopping monitors {monitor}, which is not logged here" in message


def test_what_only_the_trainer_finds_is_an_error_and_leaves_no_run(
    error_of: ErrorOf, synthetic: list[str], runs: Path
) -> None:
    asked = [MLP, *synthetic, f"--runs_dir={runs}", "--trainer.logger=false", "--name=a"]
    accumulate = ["--trainer.callbacks=GradientAccumulationScheduler"]
    accumulate.append("--trainer.callbacks.scheduling={0: 2}")
    message = error_of(["fit", *asked, *accumulate, "--trainer.accumulate_grad_batches=2"])
    assert "accumulate_grad_batches" in message
    assert not (runs / "a").exists()


def test_a_test_after_fit_needs_checkpoints(refused: Callable[..., str]) -> None:
    flags = ["--test_after_fit=true", "--trainer.enable_checkpointing=false"]
    assert "leave trainer.enable_checkpointing on" in refused(MLP, *flags)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error(refused: Callable[..., str]) -> None:
    assert "--trainer.accelerator cpu" in refused(MLP, "--trainer.accelerator=gpu")


@pytest.mark.parametrize("flag", [[], ["--model.lr=0.1"]])
def test_a_model_must_be_named(flag: list[str], refused: Callable[..., str]) -> None:
    assert "which model? Add --config configs/mlp.yaml" in refused(*flag)


def test_an_unknown_model_names_the_known(refused: Callable[..., str]) -> None:
    known = "CNN, FastCNN, FineTuned, MLP, NumPyMLP"
    assert refused("--model=CN") == f"model: expected one of {known}, got CN, did you mean CNN?"


_PLAIN = """
from pytorch_lightning import Callback, LightningModule
from lightning_modules import MLP, Classifier


class Plain(LightningModule):
    pass


class Seven(MLP):
    def forward(self, images):
        return images.new_zeros(len(images), 7)


class Pair(Seven):
    def forward(self, images):
        return images, images


class Breaks(Seven):
    def forward(self, images):
        return images @ images.new_zeros(5, 5)


class Evaluates(Seven):
    def validation_step(self, batch, batch_idx):
        pass


class Two(Seven):
    def configure_optimizers(self):
        return [], []


class Bare(Classifier):
    def __init__(self, **kwargs):
        pass

    def forward(self, images):
        return images


class FailsInTraining(MLP):
    def forward(self, images):
        if self.training:
            raise RuntimeError("in training")
        return super().forward(images)


class Detaches(MLP):
    def forward(self, images):
        return super().forward(images).detach()


class Asks(MLP):
    def forward(self, images):
        scale = self.trainer.current_epoch + 1 if self.training else 1
        return scale * super().forward(images)


class Logs(MLP):
    def forward(self, images):
        logits = super().forward(images)
        if self.training:
            self.log("train/largest", logits.max())
        return logits


class Frozen(MLP):
    def __init__(self, **kwargs):
        super().__init__(norm="batch", **kwargs)
        self.layers.eval()

    def training_step(self, batch, batch_idx, extra=None):
        assert not self.layers.training
        return super().training_step(batch, batch_idx)


class Pairs(MLP):
    def forward(self, images):
        logits = super().forward(images)
        return (logits, logits) if self.training else logits

    def training_step(self, *args):
        images, labels = args[0]
        logits, _ = self(images)
        return logits.sum() * 0


class Arguments(MLP):
    def training_step(self, batch):
        return 0


class NoForward(Classifier):
    pass


class NoLayers(Classifier):
    def forward(self, images):
        return images.flatten(1)[:, :10]


class NeedsDepth(Seven):
    def __init__(self, depth: int, **kwargs):
        super().__init__(**kwargs)


class FailsInside(Seven):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.scale()

    def scale(self):
        return {}["scale"]


class OwnCallback(Callback):
    def __init__(self):
        raise RuntimeError("no")


class OwnRate(Classifier):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()

    def forward(self, images):
        return images
"""


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with models of a user's own, in the working directory."""
    (tmp_path / "plain_models.py").write_text(_PLAIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plain_models", raising=False)  # of an earlier folder


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize("name", ["plain_models.Plain", "torch.nn.Linear"])
def test_a_module_that_is_no_classifier_is_told_what_to_change(
    name: str, refused: Callable[..., str]
) -> None:
    message = refused(f"--model={name}")
    assert f"{name} does not derive from lightning_modules.Classifier" in message
    for change in ("super().__init__(**kwargs)", "forward return logits", "training_step may stay"):
        assert change in message


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Seven", r"Seven.forward returns \(2, 7\) .*: let it return logits \(B, 10\)"),
        ("Pair", "Pair.forward returns tuple"),
        ("Breaks", "Breaks.forward fails in evaluation on .2, 3, 32, 32.: mat1 and mat2"),
        ("Evaluates", "Evaluates.validation_step: leave it out, or override evaluate"),
        ("Two", "configure_optimizers must return one optimizer"),
        ("Bare", r"Bare.__init__: call super\(\).__init__\(\*\*kwargs\) first"),
        ("FailsInTraining", "forward fails in training on .*: in training .*line .*, in forward"),
        ("Detaches", "Detaches.forward returns logits without a gradient: leave out detach"),
        (
            "Arguments",
            "Arguments.training_step does not take batch, batch_idx: too many positional",
        ),
        ("NoForward", "its class has no forward: define it"),
        ("NoLayers", "no parameters to train: make its layers in __init__"),
        ("NeedsDepth", "needs depth: add --model.depth"),
        ("FailsInside", r"'scale' \(.*plain_models.py, line \d+, in scale: KeyError\)"),
        ("Breaks", r"plain_models.py, line \d+, in forward: RuntimeError"),
    ],
)
def test_a_model_that_can_not_be_trained_is_told_before(
    name: str, message: str, refused: Callable[..., str]
) -> None:
    assert re.search(message, refused(f"--model=plain_models.{name}"))


def test_own_data_that_can_not_be_trained_on_is_told_before(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((50, 3, 32, 32), np.uint8)
    labels, names = np.arange(50) % 2, [""] * 50
    good = ImageSet(images, labels, names)
    classes = ["a", "b"]
    data = Splits(good, None, good, classes)

    def message(found: object) -> str:
        monkeypatch.setattr(CIFAR10DataModule, "read", lambda self: found)
        return refused(MLP, "--model.num_classes=2", "--data.batch_size=5", "--data.val_size=10")

    def train(*arrays: Any) -> Splits:
        return data._replace(train=ImageSet(*arrays))

    for found, text in (
        (None, "CIFAR10DataModule.read returns NoneType: return Splits"),
        (train(images.astype(np.float32), labels, names), "train has images float32 (50, 3, 32,"),
        (
            train(images.transpose(0, 2, 3, 1), labels, names),
            "uint8 (50, 32, 32, 3): expected uint8",
        ),
        (
            train(images, labels.astype(float), names),
            "train has labels float64 (50,): expected int64",
        ),
        (train(images, labels[:40], names), "train has labels int64 (40,): expected int64 (50,)"),
        (train(images, labels + 1, names), "train has the label 2: expected 0 to 1"),
        (train(images, labels - 1, names), "train has the label -1: expected 0 to 1"),
        (train(images, labels, names[:9]), "train has 9 names of 50 images"),
        (train(images[:0], labels[:0], []), "train has no images"),
        (train(torch.zeros(50, 3, 32, 32), labels, names), "train holds no NumPy arrays"),
    ):
        assert text in message(found)


@pytest.mark.usefixtures("own_models")
def test_a_callback_that_can_not_be_made_names_its_line(refused: Callable[..., str]) -> None:
    message = refused(MLP, "--trainer.callbacks=plain_models.OwnCallback")
    assert re.fullmatch(r"no \(.*plain_models.py, line \d+, in __init__: RuntimeError\)", message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1 / 0", r"division by zero \(.*broken.py, line 1: ZeroDivisionError\)"),
        ("import nosuch", r"no module nosuch \(.*broken.py, line 1: ModuleNotFoundError\)"),
        ("\ndef f(:", r"invalid syntax \(broken.py, line 2\)"),
    ],
)
def test_an_own_module_that_can_not_be_imported_names_its_line(
    content: str,
    message: str,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "broken.py").write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert re.fullmatch(f"model: {message}", refused("--model=broken.Net"))
    assert refused("--model=broken") == (
        "model: broken.py is a file: name a class in it, as broken.ClassName"
    )
    assert refused("--model=brokenn.Net") == "model: no module brokenn, did you mean broken?"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer=Adam"], "unknown key 'optimizer', did you mean 'model.optimizer'?"),
        (["--batch_size=3"], "unknown key 'batch_size', did you mean 'data.batch_size'?"),
        (["--model.optimizer=torch.nn.Linear"], "model.optimizer: torch.nn.Linear is no Optimizer"),
        (
            ["--model.lr_scheduler=StepLR"],
            "a class that is asked for needs step_size: add --model.lr_scheduler.step_size",
        ),
        (
            ["--trainer.callbacks=EarlyStopping"],
            "a class that is asked for needs monitor: add --model.lr_scheduler.monitor or "
            "--trainer.callbacks.monitor",
        ),
        (
            ["--model.lr_scheduler=ReduceLROnPlateau"],
            "model.lr_scheduler: ReduceLROnPlateau needs a metric: --model.lr_scheduler "
            "pytorch_lightning.cli.ReduceLROnPlateau --model.lr_scheduler.monitor val/loss",
        ),
    ],
)
def test_a_class_that_lacks_something_says_what_to_add(
    flags: list[str], message: str, refused: Callable[..., str]
) -> None:
    assert refused(MLP, *flags) == message


@pytest.mark.usefixtures("own_models")
@pytest.mark.parametrize("name", ["Asks", "Frozen", "Logs", "Pairs"])
def test_a_model_that_can_be_trained_is_not_refused(name: str, fit: Cli) -> None:
    assert fit(f"--model=plain_models.{name}").fields["status"] == "finished"


@pytest.mark.usefixtures("own_models")
def test_a_class_that_its_module_lacks_names_the_nearest(refused: Callable[..., str]) -> None:
    message = refused("--model=plain_models.Plane")
    assert message == "model: plain_models has no Plane, did you mean Plain?"


@pytest.mark.usefixtures("own_models")
def test_a_model_without_optimizer_has_no_learning_rate_flag(refused: Callable[..., str]) -> None:
    message = refused("--model=plain_models.OwnRate", "--model.lr=0.1")
    assert "pass its **kwargs on to Classifier" in message
    assert "--model.init_args.lr" in message


def test_a_config_without_its_flag_is_explained(refused: Callable[..., str]) -> None:
    assert "a configuration is given with --config" in refused("configs/mlp.yaml", MLP)


def test_options_come_after_the_command(error_of: ErrorOf) -> None:
    message = error_of(["--config", "configs/mlp.yaml", "fit"])
    assert message == "options come after the command: fit --config ..."


def test_a_command_must_be_named(error_of: ErrorOf) -> None:
    assert error_of([]).startswith("which command? fit, validate, test or predict")
    assert "fit" in error_of(["fti"])


# ---- data ----------------------------------------------------------------------------------------


def test_missing_data_names_the_remedies(refused: Callable[..., str], tmp_path: Path) -> None:
    data = ["--data.source=cifar10", f"--data.data_dir={tmp_path}", "--data.download=false"]
    message = refused(MLP, *data)
    for part in (str(tmp_path), "CIFAR10_DIR", "--data.source synthetic"):
        assert part in message


def test_a_corrupted_data_file_is_named(refused: Callable[..., str], tmp_path: Path) -> None:
    file = make_synthetic(tmp_path, 20) / "data_batch_3"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    data = [f"--data.data_dir={tmp_path}", "--data.synthetic_images=20"]
    assert f"{file.parent} is damaged: {file.name} is corrupted" in refused(MLP, *data)


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_an_unusable_folder_to_predict_is_an_error(
    content: bytes | None, fit: Cli, error_of: ErrorOf, tmp_path: Path
) -> None:
    record = fit(MLP, "--model.hidden_units=[2]")
    (tmp_path / "pictures").mkdir()
    if content is not None:
        (tmp_path / "pictures" / "a.png").write_bytes(content)
    asked = ["--name=run", f"--runs_dir={record.path.parent}"]
    message = error_of(["predict", *asked, f"--data.predict_dir={tmp_path / 'pictures'}"])
    assert str(tmp_path / "pictures") in message
    assert (record.path / "record.json").read_text().count('"status": "finished"') == 1


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    record = short_fit(tmp_path_factory.mktemp("runs"), data_dir, MLP, "--model.hidden_units=[2]")
    return record.path / "best.ckpt"


def flip_a_byte(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[: len(content) // 2], "is truncated or no checkpoint"),
        (lambda content: b"", "(0 bytes) is truncated or no checkpoint"),
        (lambda content: b"some words\n", "is truncated or no checkpoint"),
        (flip_a_byte, "is corrupted"),
    ],
    ids=["truncated", "empty", "text", "flipped byte"],
)
@pytest.mark.parametrize("command", mark_slow(["fit", "test"], except_for=["test"]))
def test_a_damaged_checkpoint_is_refused(
    command: str,
    damage: Callable[[bytes], bytes],
    message: str,
    checkpoint: Path,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes(damage(checkpoint.read_bytes()))
    asked = [f"--ckpt_path={damaged}", "--model.hidden_units=[2]"]
    error = refused(MLP, *asked, command=command)
    assert str(damaged) in error
    assert message in error


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (
            "max_steps=4",
            "last.ckpt has 4 steps behind it: raise --trainer.max_steps above, or start a "
            "new run from its weights with --init_from",
        ),
        ("max_epochs=1", "last.ckpt has 1 epochs behind it: raise --trainer.max_epochs above"),
    ],
)
def test_a_training_that_has_ended_does_not_go_on(
    limit: str, message: str, fit: Cli, error_of: ErrorOf, synthetic: list[str], runs: Path
) -> None:
    fit(MLP, "--trainer.max_steps=-1", "--trainer.max_epochs=1", "--data.batch_size=200")
    asked = ["fit", MLP, *synthetic, f"--runs_dir={runs}", "--name=run", "--ckpt_path=last"]
    assert error_of([*asked, "--data.batch_size=200", f"--trainer.{limit}"]).endswith(message)


def test_a_run_is_replaced_or_gone_on_with(refused: Callable[..., str]) -> None:
    assert "leave one out" in refused(MLP, "--overwrite=true", "--ckpt_path=last")


def test_a_missing_checkpoint_is_named(refused: Callable[..., str]) -> None:
    assert "no checkpoint nope.ckpt" in refused(MLP, "--ckpt_path=nope.ckpt", command="test")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize("allowed", ["0", "1"])
def test_a_checkpoint_cannot_run_code(
    allowed: str, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", allowed)
    torch.save({"state_dict": Harmful()}, tmp_path / "harmful.ckpt")
    assert "more than weights" in refused(MLP, "--ckpt_path=harmful.ckpt", command="test")
    assert not (tmp_path / "harmed").exists()


def test_a_file_without_weights_is_no_checkpoint(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    asked = f"--ckpt_path={tmp_path / 'other.ckpt'}"
    assert "it has no state_dict" in refused(MLP, asked, command="test")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_random_weights_are_never_evaluated(command: str, refused: Callable[..., str]) -> None:
    assert "random weights are never evaluated" in refused(MLP, command=command)
    assert "needs a run: pass --name RUN" in refused(MLP, "--ckpt_path=best", command=command)


def test_a_port_that_is_none_is_an_error(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", "many")
    assert refused(MLP) == "MASTER_PORT must be a port, 1 to 65535, got 'many'"


def test_a_folder_that_cannot_be_looked_into_is_named(refused: Callable[..., str]) -> None:
    message = refused(MLP, "--data.source=cifar10", f"--data.data_dir={'long' * 100}")
    assert message.startswith("longlong")
    assert message.endswith(": File name too long")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("record.json", "[]", "record.json can't be read: it is not of this project"),
        ("record.json", '{"name": ', "record.json can't be read: .*; start another run from a"),
        ("metrics.jsonl", '{"step": 1}\nrubbish\n{"step": 2}\n', "metrics.jsonl, line 2: no entry"),
        ("config.yaml", "model:\n- [", "config.yaml, line 2: not YAML"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    file: str, content: str, message: str, error_of: ErrorOf, fit: Cli
) -> None:
    run = fit(MLP).path
    (run / file).write_text(content)
    again = ["fit", f"--runs_dir={run.parent}", f"--name={run.name}", "--resume"]
    assert re.search(message, error_of([*again, "--trainer.max_steps=9"]))


def test_a_damaged_configuration_is_not_replaced(
    error_of: ErrorOf, fit: Cli, synthetic: list[str]
) -> None:
    run = fit(MLP).path
    (run / "config.yaml").write_text("model:\n- [")
    again = ["fit", MLP, f"--runs_dir={run.parent}", f"--name={run.name}", "--resume"]
    record = (run / "record.json").read_text()
    assert "config.yaml can't be read" in error_of([*again, *synthetic])
    assert (run / "record.json").read_text() == record


def test_an_unknown_run_lists_the_known(error_of: ErrorOf, checkpoint: Path) -> None:
    runs = f"--runs_dir={checkpoint.parent.parent}"
    assert error_of(["test", "--name=nope", runs]).endswith(": run")
    assert "plain folder name" in error_of(["test", "--name=../run", runs])


def test_a_run_without_checkpoints_says_so(
    error_of: ErrorOf, checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint.parent, tmp_path / "bare", ignore=shutil.ignore_patterns("*.ckpt"))
    asked = ["test", "--name=bare", f"--runs_dir={tmp_path}"]
    assert "no checkpoint best.ckpt: it has none" in error_of(asked)


def test_a_run_is_not_mixed_with_other_data(error_of: ErrorOf, checkpoint: Path) -> None:
    asked = ["test", "--name=run", f"--runs_dir={checkpoint.parent.parent}"]
    message = error_of([*asked, "--data.source=cifar10", "--data.download=false"])
    assert "CIFAR-10 not found" in message


def test_an_abbreviated_flag_is_unknown(error_of: Callable[[list[str]], str]) -> None:
    assert error_of(["fit", "--model=MLP", "--ov=true"]).startswith("unknown key 'ov'")


def test_weights_of_another_run_do_not_overwrite_a_run(
    fit: Cli, error_of: Callable[[list[str]], str], runs: Path, synthetic: list[str]
) -> None:
    fit("--model=MLP", name="a")
    fit("--model=MLP", name="b")
    before = (runs / "b" / "best.ckpt").read_bytes()
    asked = ["fit", "--model=MLP", *synthetic, f"--runs_dir={runs}", "--name=b"]
    message = error_of([*asked, f"--ckpt_path={runs / 'a' / 'last.ckpt'}"])
    assert "exists" in message
    assert (runs / "b" / "best.ckpt").read_bytes() == before
