"""What every setting means for whether two runs are of the same experiment, and what follows."""

import re
from dataclasses import asdict
from typing import Any

import pytest
import yaml

from experiments.identity import (
    LEARNING_RATE,
    LEARNING_RATE_LONG,
    TABLE,
    changes_between,
    expand_learning_rate,
    experiment_name,
    experiment_of,
    experiment_settings,
    flags_of,
    flat_key,
    kind_of,
    setting_mismatches,
)
from experiments.records.runs import flat
from tests.conftest import PROJECT

OF_A_RUN = "tests/fixtures/of-before-the-rooms/config.yaml"
CONFIG: dict[str, Any] = flat(yaml.safe_load((PROJECT / OF_A_RUN).read_text()))
# To which questions the answer is yes, where it is not that of any other setting.
OTHERS = "name group resume claim"
STATED = {
    "seed_everything": "resume claim",
    "data.seed": "name resume claim",
    "name": "",
    "runs_dir": "",
    "overwrite": "",
    "resume": "",
    "trust_run": "",
    "save_every_min": "",
    "test_after_fit": "",
    "ckpt_path": "",
    "data.data_dir": "",
    "trainer.logger": "",
    "trainer.logger.project": "",
    "trainer.logger.mode": "",
    "trainer.logger.entity": "",
    "trainer.logger.group": "",
    "trainer.logger.job_type": "",
    "trainer.logger.tags": "",
    "trainer.logger.notes": "",
    "data.download": "resume claim",
    "trainer.default_root_dir": "resume claim",
    "trainer.enable_checkpointing": "resume claim",
    "trainer.enable_progress_bar": "resume claim",
    "trainer.enable_model_summary": "resume claim",
    "trainer.enable_autolog_hparams": "resume claim",
    "trainer.max_steps": "name group claim",
    "trainer.max_epochs": "name group claim",
    "trainer.max_time": "name claim",  # what it has stopped is told apart all the same
    "trainer.accelerator": "group resume claim",
    "trainer.devices": "group resume claim",
    "trainer.strategy": "group resume claim",
    "trainer.num_nodes": "group resume claim",
    "trainer.log_every_n_steps": "group resume claim",
    "data.predict_dir": "group resume claim",
    "weights_only": "group resume claim",
    "data": "group resume claim figures validation",
    "data.source": "group resume claim figures validation",
    "data.synthetic_images": "group resume claim figures validation",
    "data.val_size": "name group resume claim validation",
    "data.split_seed": "name group resume claim validation",
    "trainer.limit_val_batches": "name group resume claim validation",
    "trainer.overfit_batches": "name group resume claim validation",
    "trainer.callbacks": "name group resume",
    "model": "group resume claim figures",
    "model.hidden_units": "name group resume claim figures",
    "model.activation": "name group resume claim figures",
    "model.norm": "name group resume claim figures",
    "model.weight_std": "name group resume claim figures",
    "model.num_classes": "name group resume claim figures",
    "data.normalization": "name group resume claim figures",
    "trainer.precision": "name group resume claim figures",
}
NOT_IN_A_CONFIGURATION = {
    "config": "",
    "print_config": "group resume claim",
    "run.data": "",  # of W&B's
    "trainer.max_time.hours": "name claim",
    "model_code": "group resume claim figures",  # a field of the record, as the next
    "pictures": "group resume claim figures validation",
    "model.weights": "name group resume claim figures",
    "model.lr_scheduler.start": OTHERS,
    "data.data_dirs": OTHERS,
}


def answers(key: str) -> str:
    return " ".join(question for question, answer in asdict(kind_of(key)).items() if answer)


@pytest.mark.parametrize("key", CONFIG)
def test_a_setting_has_the_stated_answers(key: str) -> None:
    assert answers(key) == STATED.get(key, OTHERS)


@pytest.mark.parametrize("key", NOT_IN_A_CONFIGURATION)
def test_so_has_what_no_configuration_of_a_run_holds(key: str) -> None:
    assert answers(key) == NOT_IN_A_CONFIGURATION[key]


def test_every_row_counts_for_a_setting_and_none_is_stated_that_is_not_there() -> None:
    keys = [*CONFIG, *NOT_IN_A_CONFIGURATION]
    rows = [row for row, _ in TABLE]
    first = {next((row for row in rows if re.fullmatch(row, key)), None) for key in keys}
    assert first == {*rows, None}
    assert STATED.keys() <= CONFIG.keys()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("fit --config configs/mlp.yaml", "mlp"),
        ("fit -c configs/mlp.yaml --model.lr 0.01", "mlp-lr_0.01"),
        ("fit --config=configs/mlp.yaml --model.init_args.optimizer.init_args.lr=-1", "mlp-lr_-1"),
        ("fit --model lightning_modules.MLP", "mlp"),
        ("fit --config=configs/mlp.yaml --model=CNN", "mlp-cnn"),
        ("fit --config=a/mlp_deep.yaml --config=a/ablations/relu.yaml", "mlp_deep-relu"),
        ("fit --config=configs/mlp.yaml --config=configs/data/synthetic.yaml", "mlp"),
        ("fit --model.norm=layer --model MLP --model.lr=1 --model.lr=2", "mlp-lr_2-norm_layer"),
        ("fit --model=MLP --model.hidden_units=[20,10]", "mlp-hidden_units_20_10"),
        (
            "fit --model=MLP --trainer.callbacks+=EMAWeightAveraging",
            "mlp-callbacks_EMAWeightAveraging",
        ),
        (
            "fit --model=MLP --data.data_dir=/x --trainer.accelerator gpu --resume --name=a "
            "--trainer.logger.mode=online --seed_everything 3 --test_after_fit true",
            "mlp",
        ),
        (
            "fit --model=MLP --model.optimizer=Adam --model.lr_interval=epoch",
            "mlp-lr_interval_epoch-optimizer_Adam",
        ),
        ("fit --model=MLP --model.lr=1 --model.optimizer.lr=2", "mlp-lr_2"),
        ("fit --model=MLP --data.init_args.data_dir=/x --data.init_args.crop=4", "mlp-crop_4"),
        ("fit", "run"),
    ],
)
def test_an_experiment_is_called_after_what_changes_it(command: str, name: str) -> None:
    assert experiment_of(command.split()) == name


def test_a_name_is_a_short_name_of_a_folder() -> None:
    flags = [f"--model.option_{i}=a/../*{i}" for i in range(50)]
    one, other = (experiment_of(["fit", *flags, f"--model.weight_std={std}"]) for std in (1, 2))
    assert one != other  # in what comes last
    assert len(one) == len(other) == 80
    assert not set(one) & set("/* ")


def test_seed_and_time_are_no_part_of_it() -> None:
    name = experiment_of(["fit", "--config=configs/mlp.yaml", "--model.lr=0.01"])
    assert experiment_name(f"{name}-s3-20261125-101010-2") == name


def test_a_value_without_a_flag_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'20\]' is the value of no flag"):
        flags_of(["fit", "--model.hidden_units", "[10,", "20]"])


@pytest.mark.parametrize(
    ("flag", "key"),
    [
        ("--model.lr", "model.optimizer.lr"),
        ("--model.lr=1e-3", "model.optimizer.lr"),
        ("--model.lr_interval=step", "model.lr_interval"),
        ("--model.lr_scheduler=StepLR", "model.lr_scheduler"),
        ("--model.lr_scheduler.init_args.gamma=1", "model.lr_scheduler.gamma"),
        ("--model.lr.x=1", "model.lr.x"),
    ],
)
def test_the_learning_rate_alone_has_a_short_flag(flag: str, key: str) -> None:
    short, equals, value = flag.removeprefix("--").partition("=")
    assert flat_key(short) == key
    written_out = expand_learning_rate(flag)
    is_short = short == LEARNING_RATE
    assert written_out == (f"--{LEARNING_RATE_LONG}{equals}{value}" if is_short else flag)
    assert flat_key(written_out.removeprefix("--").partition("=")[0]) == key


def test_what_looks_on_and_seeds_are_no_part_of_an_experiment() -> None:
    average = {"class_path": "a.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    config = {
        "trainer.callbacks": [{"class_path": "a.LearningRateMonitor"}, average, "CurveOnTest"],
        "model.norm": "layer",
        "seed_everything": 3,
        "data.seed": 4,
        "run.data": "cifar10",
    }
    kept = {"model.norm": "layer", "trainer.callbacks": [{"EMAWeightAveraging": {"decay": 0.9}}]}
    assert experiment_settings(config) == kept
    assert experiment_settings({}) == {"trainer.callbacks": None}


def test_a_longer_training_is_no_change() -> None:
    before = {"trainer.max_steps": 4, "trainer.max_time.hours": 1, "model.norm": "layer", "name": 1}
    assert changes_between(before, {**before, "trainer.max_steps": 8, "name": 2}) == {}
    assert changes_between(before, {"trainer.max_steps": 4, "data.crop": 4}) == {
        "model.norm": ["layer", None]
    }


@pytest.mark.parametrize(
    ("asked", "differs"),
    [
        ({}, []),
        ({"data.batch_size": "50.0", "data.flip": 1, "trainer.callbacks": None}, []),
        ({"data.batch_size": 5}, ["data.batch_size 50, asked for 5"]),
        ({"seed_everything": 1}, ["seed_everything 42, asked for 1"]),
        ({"trainer.precision": None}, []),
        ({"trainer.precision": "32-true"}, ["trainer.precision bf16-mixed, asked for 32-true"]),
        ({"data.data_dir": "~/data", "trainer.logger": False, "name": "b"}, []),
        ({"data.source": "auto"}, ["data.source cifar10, asked for auto"]),
    ],
)
def test_a_claim_s_run_is_as_asked(asked: dict[str, Any], differs: list[str]) -> None:
    config = {
        "seed_everything": 42,
        "data.batch_size": 50,
        "data.source": "cifar10",
        "data.data_dir": "/home/ada/data",
        "trainer.logger": "WandbLogger",
        "name": "a",
        "trainer.callbacks": ["x"],
        "trainer.precision": "bf16-mixed",
        "trainer.limit_val_batches": None,
    }
    assert setting_mismatches(config, asked) == differs


def test_what_a_claim_does_not_ask_for_is_as_by_default() -> None:
    limited = {"data.source": "synthetic", "trainer.limit_test_batches": 2}
    assert setting_mismatches(limited, {}) == [
        "data.source synthetic, asked for cifar10",
        "trainer.limit_test_batches 2, asked for None",
    ]
