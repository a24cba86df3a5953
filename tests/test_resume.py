"""A run that is killed anywhere and goes on ends as if nothing had happened, to the last bit."""

import random
import signal

import pytest

from tests.chaos import Place
from tests.conftest import mark_slow
from tests.lab import MODELS, WITH_CALLBACKS, Lab

QUICK: list[Place] = [
    ("Path.replace", 2),  # before there is a configuration
    ("on_train_batch_end", 18),  # in the middle of an epoch
    ("on_train_batch_end", 22),  # the last batch of an epoch
    ("os.fsync", 16),  # a file is written, but not yet to the disk
    ("on_test_start", 1),
]
PLACES: list[Place] = [
    *QUICK,
    ("os.fsync", 1),  # before there is a record
    ("on_train_batch_end", 1),  # before there is a checkpoint
    ("on_train_batch_start", 23),  # just after an epoch
    ("on_validation_batch_end", 2),
    ("torch.save", 3),  # a checkpoint is begun
    ("Path.replace", 13),  # a file is not in its place
    ("on_train_end", 1),
]


@pytest.mark.parametrize(("where", "count"), mark_slow(PLACES, except_for=QUICK))
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    labs: dict[str, Lab], where: str, count: int
) -> None:
    lab = labs["MLP"]
    name = f"{where}-{count}"
    assert lab.fit(name, at=(where, count)).code == -signal.SIGKILL
    resumed = lab.fit(name, "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result(name) == lab.result("whole")


OTHERS = [kind for kind in MODELS if kind != "MLP"]


@pytest.mark.parametrize("kind", mark_slow(OTHERS, except_for={"LayerNorm"}))
def test_every_kind_of_training_goes_on_exactly(labs: dict[str, Lab], kind: str) -> None:
    lab = labs[kind]
    for place in [("on_train_batch_end", 18), ("on_train_batch_start", 31)]:
        assert lab.fit("killed", "--resume", at=place).code == -signal.SIGKILL
    resumed = lab.fit("killed", "--resume")
    assert resumed.code == 0, resumed.err
    assert lab.result("killed") == lab.result("whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*MODELS, *WITH_CALLBACKS])
def test_chaos(labs: dict[str, Lab], kind: str) -> None:
    """Ten kills of each kind at random moments, each run killed until it has survived them."""
    lab, chance = labs[kind], random.Random(kind)
    kills = runs = 0
    while kills < 10:
        runs += 1
        name, is_over = f"chaos-{runs}", False
        while kills < 10 and not is_over and chance.random() < 0.8:
            place = (chance.choice(["on_train_batch_end", "os.fsync"]), chance.randint(1, 30))
            is_over = lab.fit(name, "--resume", at=place).code != -signal.SIGKILL
            kills += not is_over
        resumed = lab.fit(name, "--resume")
        assert resumed.code == 0, resumed.err
        assert lab.result(name) == lab.result("whole")
    print(f"{kind}: {kills} kills in {runs} runs")
