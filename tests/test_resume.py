"""A run that is killed anywhere and goes on ends as if nothing had happened, to the last bit."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import Ended, Place, Zygote, fingerprint
from tests.conftest import small

# Epochs of 22 batches, a validation every 7 and an entry of the log every 4 steps: none falls
# together with another but by chance.
LONG = [
    "--trainer.accelerator=cpu",
    "--trainer.max_steps=48",
    "--trainer.val_check_interval=7",
    "--trainer.check_val_every_n_epoch=null",
    "--trainer.log_every_n_steps=4",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
    "--test_after_fit",
]
AUGMENTED = ["--data.flip=random", "--data.crop=2"]
MODELS = {
    "MLP": ["--model=MLP", "--model.hidden_units=[20]", *AUGMENTED],
    "deep": ["--config=configs/mlp_deep.yaml", "--model.hidden_units=[20, 20]"],
    "LayerNorm": ["--model=MLP", "--model.hidden_units=[20]", "--model.norm=layer"],
    "NumPyMLP": ["--model=NumPyMLP", "--model.hidden_units=[20]"],
    "FastCNN": [
        "--config=configs/fast94.yaml",
        "--model.widths=[8, 8, 8]",
        "--trainer.precision=32-true",
        "--trainer.callbacks+=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.9",
    ],
    "dropout": [
        "--config=configs/finetune.yaml",
        "--model.architecture=squeezenet1_1",
        "--model.image_size=32",
        "--trainer.precision=32-true",
    ],
}
PLACES: list[Place] = [
    ("on_train_batch_end", 1),  # before there is a checkpoint
    ("on_train_batch_end", 18),  # in the middle of an epoch
    ("on_train_batch_end", 22),  # the last batch of an epoch
    ("on_train_batch_start", 23),  # just after it
    ("on_validation_batch_end", 2),
    ("torch.save", 3),  # a checkpoint is begun
    ("os.fsync", 16),  # a file is written, but not yet to the disk
    ("Path.replace", 13),  # ... and not in its place
    ("on_train_end", 1),
    ("on_test_start", 1),
]


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Runs commands that may be killed."""
    started = Zygote()
    yield started
    started.close()


@dataclass(frozen=True)
class Lab:
    """Where runs are killed.

    Attributes:
        zygote: runs the commands.
        root: holds the runs.
        options: what all commands share.
    """

    zygote: Zygote
    root: Path
    options: list[str]

    def fit(self, name: str, *args: str, at: Place | None = None, **kwargs: Any) -> Ended:
        """Runs ``fit`` under a name."""
        places = [f"--runs_dir={self.root}", f"--name={name}"]
        return self.zygote.run(["fit", *self.options, *places, *args], at, **kwargs)

    def result(self, name: str) -> dict[str, Any]:
        """All that a run has come to."""
        return fingerprint(self.root / name)


@pytest.fixture(scope="session")
def labs(
    zygote: Zygote, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Lab]:
    """For each kind of training, a lab in which it has run undisturbed as ``whole``."""

    class Labs(dict[str, Lab]):
        def __missing__(self, kind: str) -> Lab:
            root = tmp_path_factory.mktemp(kind)
            lab = Lab(zygote, root, [*MODELS[kind], *small(data_dir), *LONG])
            ended = lab.fit("whole")
            assert ended.code == 0, ended.err
            self[kind] = lab
            return lab

    return Labs()


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0]}-{place[1]}")
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    labs: dict[str, Lab], place: Place
) -> None:
    lab = labs["MLP"]
    name = f"{place[0]}-{place[1]}"
    assert lab.fit(name, at=place).code == -signal.SIGKILL
    resumed = lab.fit(name, "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result(name) == lab.result("whole")


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "MLP"])
def test_every_kind_of_training_goes_on_exactly(labs: dict[str, Lab], kind: str) -> None:
    lab = labs[kind]
    for place in [("on_train_batch_end", 18), ("on_train_batch_start", 31)]:
        assert lab.fit("killed", "--resume", at=place).code == -signal.SIGKILL
    resumed = lab.fit("killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result("killed") == lab.result("whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_chaos(labs: dict[str, Lab], kind: str) -> None:
    """Ten kills of each kind at random moments, each run killed until it has survived them."""
    lab, chance = labs[kind], random.Random(kind)
    kills = 0
    while kills < 10:
        name = f"chaos-{kills}"
        while kills < 10 and chance.random() < 0.8:
            place = (chance.choice(["on_train_batch_end", "os.fsync"]), chance.randint(1, 30))
            kills += lab.fit(name, "--resume", at=place).code == -signal.SIGKILL
        resumed = lab.fit(name, "--resume")
        assert resumed.code == 0, resumed.err
        assert lab.result(name) == lab.result("whole")
