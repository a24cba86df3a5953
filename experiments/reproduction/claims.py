"""The report's claims, with the numbers in its text, and the judge of each.

A claim compares experiments (`experiments.reproduction.arms`) with a figure of the report or with
each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from experiments.reproduction.arms import BATCH_SIZES, NORMS
from experiments.reproduction.judges import (
    AtLeast,
    Everywhere,
    Figure,
    Greater,
    Judge,
    NoGain,
    NoLearning,
    Same,
)


@dataclass(frozen=True)
class Claim:
    """A claim of the report.

    Attributes:
        key: its name here.
        section: its section in the report.
        text: the claim in words.
        number: its figure, if any.
        judge: the test of the claim.
        drawn: more arms for its plot.
    """

    key: str
    section: str
    text: str
    number: str
    judge: Judge
    drawn: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms of the claim."""
        return (*self.judge.arms, *self.drawn)


_DEEP = "mlp_deep"
CLAIMS = (
    Claim("numpy", "1.2", "The NumPy MLP reaches", "48.38 %", Figure("mlp_numpy", 0.4838)),
    Claim("pytorch", "2.1", "The same MLP in PyTorch reaches", "49.12 %", Figure("mlp", 0.4912)),
    Claim(
        "numpy-pytorch",
        "2.1",
        "PyTorch's MLP is better than NumPy's only because of random numbers",
        "+0.74 points",
        Same("mlp", "mlp_numpy"),
    ),
    Claim(
        "more-steps",
        "2.1",
        "More iterations do not help significantly (4,000 steps against 1,400)",
        "",
        NoGain(("longer",), "mlp", allows_small=True),
    ),
    Claim(
        "peak",
        "2.1",
        "It is slightly above 50 % after 2,300 steps",
        "> 50 %",
        AtLeast("longer", 0.5, "test_curve/acc@2300"),
    ),
    Claim(
        "peak-then",
        "2.1",
        "The peak is at 2,300 steps (4,000 steps are no better)",
        "",
        NoGain(("longer",), "longer", "test_curve/acc@4000", "test_curve/acc@2300"),
    ),
    Claim(
        "small-init",
        "2.1",
        "Two hidden layers with weights of std 1e-4 do not learn at all",
        "no learning",
        NoLearning("two_layers_small_init"),
    ),
    Claim(
        "two-layers",
        "2.1",
        "Two hidden layers, better initialised, stay behind the default MLP under SGD",
        "",
        Greater("mlp", "two_layers_sgd"),
    ),
    Claim(
        "adam",
        "2.1",
        "Adam instead of SGD brings very large improvements: two hidden layers, over ten points",
        "",
        Greater("two_layers_adam", "two_layers_sgd", by=0.1),
    ),
    Claim(
        "adam-deep",
        "2.1",
        "Adam also brings very large improvements for the best network",
        "",
        Greater(_DEEP, "sgd", by=0.1),
    ),
    Claim(
        "no-schedule",
        "2.1",
        "Five hidden layers, Adam and longer training reach",
        "52 %",
        Figure("no_schedule", 0.52),
    ),
    Claim(
        "schedule",
        "2.1",
        "The learning-rate schedule improves this network",
        "",
        Greater(_DEEP, "no_schedule"),
    ),
    Claim(
        "best",
        "2.1",
        "With the schedule, accuracy after 2,000 iterations is about",
        "56 %",
        Figure(_DEEP, 0.56, "test_curve/acc@2000"),
    ),
    Claim(
        "plateau",
        "2.1",
        "Then the performance plateaus: no significant gain from 2,000 to 4,000 steps",
        "",
        NoGain((_DEEP,), _DEEP, "test_curve/acc@4000", "test_curve/acc@2000", allows_small=True),
    ),
    Claim(
        "depth",
        "2.1",
        "More than one hidden layer helps (five against one)",
        "",
        Greater(_DEEP, "one_layer"),
    ),
    Claim(
        "deeper",
        "2.1",
        "More than five hidden layers do not help",
        "",
        NoGain(("seven_layers", "nine_layers"), _DEEP),
    ),
    Claim(
        "learning-rate",
        "2.1",
        "Other learning rates than 0.001 do not help",
        "",
        NoGain(("lr_0.0001", "lr_0.0003", "lr_0.003", "lr_0.01"), _DEEP),
    ),
    Claim(
        "momentum",
        "2.1",
        "SGD with momentum does not help",
        "",
        NoGain(("momentum", "momentum_lr_0.01"), _DEEP),
    ),
    Claim(
        "batchnorm", "2.1", "Batch normalisation does not help", "", NoGain(("batchnorm",), _DEEP)
    ),
    Claim(
        "weight-decay",
        "2.1",
        "Weight decay does not help",
        "",
        NoGain(("weight_decay_0.0001", "weight_decay_0.001", "weight_decay_0.01"), _DEEP),
    ),
    Claim(
        "relu",
        "2.1",
        "ReLU is slightly worse than ELU, by less than two points",
        "",
        Greater(_DEEP, "relu", at_most=0.02),
    ),
    Claim(
        "tanh",
        "2.1",
        "tanh is worse by a lot, more than five points",
        "",
        Greater(_DEEP, "tanh", by=0.05),
    ),
    Claim(
        "tanh-gradient",
        "2.2",
        "ELU lets more gradient through than tanh, which saturates (last activation, trained)",
        "",
        Greater(_DEEP, "tanh", "activations/5/gradient"),
    ),
    Claim(
        "tanh-gradient-all",
        "2.2",
        "ELU lets more gradient through in each of the five hidden layers",
        "",
        Everywhere(
            {
                f"layer {layer}": Greater(_DEEP, "tanh", f"activations/{layer}/gradient")
                for layer in range(1, 6)
            }
        ),
    ),
    Claim(
        "elu-shift",
        "2.2",
        "ELU shifts the mean of a centred input at initialisation, tanh does not (first layer)",
        "",
        Greater(_DEEP, "tanh", "activations/1/mean@0", magnitude=True),
    ),
    Claim(
        "elu-shift-last",
        "2.2",
        "The shift reaches the last activation",
        "",
        Greater(_DEEP, "tanh", "activations/5/mean@0", magnitude=True),
    ),
    Claim(
        "layernorm",
        "3",
        "(not in the report:) layer normalisation does not help the best MLP",
        "",
        NoGain(("layernorm",), _DEEP),
    ),
    Claim(
        "higher-rate",
        "3.3",
        "Batch normalisation allows a higher learning rate (at 0.01, better than without)",
        "",
        Greater("batchnorm_lr_0.01", "lr_0.01"),
    ),
    Claim(
        "small-batch",
        "3.3",
        "Batch normalisation suffers from very small batches (2 against 200)",
        "",
        Greater("batch_200", "batch_2"),
        drawn=tuple(f"{norm}_{size}" for norm in NORMS for size in BATCH_SIZES),
    ),
    Claim(
        "layernorm-small-batch",
        "3.3",
        "Layer normalisation works fine with very small batches (no gain of a point at 200)",
        "",
        NoGain(("layer_200",), "layer_2", allows_small=True),
    ),
    Claim(
        "layernorm-batchnorm",
        "3.3",
        "At batches of 2, layer normalisation is better than batch normalisation",
        "",
        Greater("layer_2", "batch_2"),
    ),
    Claim(
        "cnn",
        "4.1",
        "The author's CNN reaches, on the test set after 5,000 batches",
        "91 %",
        Figure("cnn_report", 0.91),
    ),
    Claim(
        "cnn-stream",
        "4.1",
        "The author's script measured accuracy on its training stream instead:",
        "0.9099",
        Figure("cnn_report", 0.9099, "val/acc"),
    ),
    Claim(
        "cnn-expected",
        "4.1",
        "The author's CNN is better than the task statement expects (0.79)",
        "> 0.79",
        AtLeast("cnn_report", 0.79),
    ),
    Claim(
        "cnn-specified",
        "4.1",
        "(not in the report:) the CNN as specified reaches the expected accuracy",
        "0.79",
        AtLeast("cnn", 0.79),
    ),
)


def claims_named(keys: Iterable[str]) -> list[Claim]:
    """The claims with these keys; all claims if there are no keys.

    Raises:
        ValueError: for an unknown key; the message lists the valid ones.
    """
    known = {claim.key: claim for claim in CLAIMS}
    for key in keys:
        if key not in known:
            raise ValueError(f"no claim {key!r}; there are {', '.join(known)}")
    return [known[key] for key in keys] or list(CLAIMS)
