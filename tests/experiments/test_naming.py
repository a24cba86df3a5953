import pytest

from experiments.naming import experiment_of, flags_of
from experiments.record import experiment_name


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
        ("fit", "run"),
    ],
)
def test_an_experiment_is_called_after_what_changes_it(command: str, name: str) -> None:
    assert experiment_of(command.split()) == name


def test_a_name_is_a_short_name_of_a_folder() -> None:
    flags = [f"--model.option_{i}=a/../*{i}" for i in range(50)]
    one, other = (experiment_of(["fit", *flags, f"--model.lr={lr}"]) for lr in (1, 2))
    assert one != other
    assert len(one) == 80
    assert not set(one) & set("/* ")


def test_seed_and_time_are_no_part_of_it() -> None:
    name = experiment_of(["fit", "--config=configs/mlp.yaml", "--model.lr=0.01"])
    assert experiment_name(f"{name}-s3-20261125-101010-2") == name


def test_a_value_without_a_flag_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'20\]' is the value of no flag"):
        flags_of(["fit", "--model.hidden_units", "[10,", "20]"])
