"""The same command gives the same weights, whatever looks on, and however often."""

import re

import pytest

from tests.conftest import mark_slow
from tests.lab import Lab

LOOKING_ON = {
    "again": [],
    "wandb": ["--trainer.logger=experiments.WandbLogger"],
    "logged in every step": ["--trainer.log_every_n_steps=1"],
    "not validated": ["--trainer.limit_val_batches=0", "--test_after_fit=false"],
    "validated twice as often": ["--trainer.val_check_interval=3"],
    "sanity checked": ["--trainer.num_sanity_val_steps=2"],
    "with a bar": ["--trainer.enable_progress_bar=true"],
    "saved all the time": ["--save_every_min=0.000001"],
    "strictly deterministic": ["--trainer.deterministic=true"],
    "seldom evaluated at once": ["--data.eval_batch_size=7"],
}
QUICK = [("MLP", change) for change in ("validated twice as often", "saved all the time")]


def weights(lab: Lab, name: str) -> str:
    found: str = lab.result(name)["record"]["summary"]["train/weights_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", found)
    return found


CASES = [
    *mark_slow((("MLP", change) for change in LOOKING_ON), except_for=QUICK),
    *mark_slow(("dropout", change) for change in LOOKING_ON),
]


@pytest.mark.parametrize(("kind", "change"), CASES)
def test_what_looks_on_changes_nothing(labs: dict[str, Lab], kind: str, change: str) -> None:
    lab, name = labs[kind], change.replace(" ", "-")
    ended = lab.fit(name, *LOOKING_ON[change])
    assert ended.code == 0, ended.err
    assert weights(lab, name) == weights(lab, "whole")


@pytest.mark.parametrize(
    "kind", mark_slow(["NumPyMLP", "FastCNN", "LayerNorm"], except_for=["LayerNorm"])
)
def test_every_kind_of_training_repeats(labs: dict[str, Lab], kind: str) -> None:
    lab = labs[kind]
    assert lab.fit("again").code == 0
    assert lab.result("again") == lab.result("whole")


def test_another_seed_is_another_training(labs: dict[str, Lab]) -> None:
    lab = labs["MLP"]
    assert lab.fit("other-seed", "--seed_everything=1").code == 0
    assert weights(lab, "other-seed") != weights(lab, "whole")
