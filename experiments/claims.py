"""The report's claims: what is run for each, and how it is judged.

An arm is an experiment, run over seeds; a claim compares arms with a figure of the report or with
each other. The configs are in ``configs/``, the report's numbers from its text.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from experiments.runs import Run
from experiments.significance import (
    FEWEST,
    Difference,
    difference,
    mean_interval,
    prediction_interval,
)

ACCURACY = "test/acc"
CHANCE = 0.1
# How small a gain must be for none to be seen: a point.
_MARGIN = 0.01

Verdict = Literal["holds", "does not hold", "inside noise", "too few seeds", "not run"]
Runs = Mapping[str, Mapping[int, Run]]  # by arm and seed


@dataclass(frozen=True)
class Arm:
    """An experiment.

    Attributes:
        name: of its runs, before the seed.
        configs: files below ``configs/`` without their ending, later ones over earlier ones.
        flags: more arguments of ``cli.py fit``.
        slow: takes minutes a seed on a CPU.
    """

    name: str
    configs: tuple[str, ...]
    flags: tuple[str, ...] = ()
    slow: bool = False

    def arguments(self, project: Path = Path()) -> list[str]:
        """The arguments of ``cli.py fit``, with the configs of this project's folder."""
        paths = [project / "configs" / f"{name}.yaml" for name in self.configs]
        return [*(f"--config={path}" for path in paths), *self.flags]


def _mlp(name: str, *flags: str, of: str = "mlp_deep", overlay: str | None = None) -> Arm:
    configs = (of, "ablations/protocol", f"ablations/{overlay or name}")
    return Arm(name, configs, flags)


def _with_activations(name: str) -> Arm:
    return Arm(name, ("mlp_deep", "ablations/protocol", f"ablations/{name}", _ACTIVATIONS))


def _norm_at(norm: str, batch_size: int) -> Arm:
    flags = (
        f"--model.norm={norm}",
        f"--data.batch_size={batch_size}",
        f"--model.lr={_NORM_LR * batch_size / 200:g}",
    )
    name = f"{norm}_{batch_size}"
    return Arm(name, ("mlp_deep", "ablations/norm_batch"), flags)


_ACTIVATIONS = "ablations/activations"
# Chosen on validation at batches of 200, as configs/ablations/norm_batch.yaml says.
_NORM_LR = 0.01
NORMS = ("batch", "layer")
BATCH_SIZES = (2, 8, 32, 200)
_LR = "--model.lr={}"
_DECAY = "--model.init_args.optimizer.init_args.weight_decay={}"

_ALL = (
    Arm("mlp_numpy", ("mlp_numpy", "ablations/protocol")),
    Arm("mlp", ("mlp", "ablations/protocol")),
    _mlp("longer", of="mlp"),
    _mlp("two_layers_small_init", of="mlp"),
    _mlp("two_layers_sgd"),
    _mlp("two_layers_adam"),
    Arm("mlp_deep", ("mlp_deep", "ablations/protocol", _ACTIVATIONS)),
    _mlp("no_schedule"),
    _mlp("sgd"),
    _mlp("momentum"),
    _mlp("momentum_lr_0.01", _LR.format(0.01), overlay="momentum"),
    _mlp("one_layer"),
    _mlp("seven_layers"),
    _mlp("nine_layers"),
    *(
        Arm(f"lr_{lr}", ("mlp_deep", "ablations/protocol"), (_LR.format(lr),))
        for lr in ("0.0001", "0.0003", "0.003", "0.01")
    ),
    _mlp("batchnorm"),
    _mlp("batchnorm_lr_0.01", _LR.format(0.01), overlay="batchnorm"),
    _mlp("layernorm"),
    *(
        _mlp(f"weight_decay_{decay}", _DECAY.format(decay), overlay="weight_decay")
        for decay in ("0.0001", "0.001", "0.01")
    ),
    _with_activations("relu"),
    _with_activations("tanh"),
    *(_norm_at(norm, batch_size) for norm in NORMS for batch_size in BATCH_SIZES),
    Arm("cnn_report", ("cnn_report", "ablations/author_stream"), slow=True),
    Arm("cnn", ("cnn", "ablations/author_stream"), slow=True),
)
ARMS = {arm.name: arm for arm in _ALL}


@dataclass(frozen=True)
class Judgement:
    """What a claim comes to.

    Attributes:
        verdict: whether it holds.
        ours: our figures.
        test: how they were judged.
    """

    verdict: Verdict
    ours: str
    test: str


class Judge(Protocol):
    """How a claim is judged."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms it needs."""
        ...

    def judge(self, runs: Runs) -> Judgement:
        """Judges by the runs that there are."""
        ...


_ACCURACIES = (ACCURACY, "test_curve/acc", "val/acc")


def values(runs: Runs, arm: str, metric: str = ACCURACY) -> dict[int, float]:
    """The values of an arm by seed; a run that diverged counts as chance."""
    found: dict[int, float] = {}
    for seed, run in sorted(runs.get(arm, {}).items()):
        value = run.value(metric)
        if value is None and diverged(run) and metric.startswith(_ACCURACIES):
            value = CHANCE
        if value is not None:
            found[seed] = value
    return found


def diverged(run: Run) -> bool:
    """Whether a run ended because its loss was no longer a number."""
    return run.status == "failed" and run.note.startswith("FloatingPointError")


def spread(found: Mapping[int, float]) -> str:
    """Mean and standard deviation, as text: ``0.5554 ± 0.0036 (n = 5)``."""
    if not found:
        return "not run"
    mean = statistics.fmean(found.values())
    sd = f" ± {statistics.stdev(found.values()):.4f}" if len(found) > 1 else ""
    return f"{mean:.4f}{sd} (n = {len(found)})"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}"


def _missing(*groups: Mapping[int, float]) -> Verdict | None:
    """The verdict where there is nothing to test."""
    fewest = min(len(group) for group in groups)
    if fewest == 0:
        return "not run"
    return "too few seeds" if fewest < FEWEST else None


@dataclass(frozen=True)
class Figure:
    """A claim that names a figure: it holds if it could be one more run of ours."""

    arm: str
    number: float
    metric: str = ACCURACY

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)

    def judge(self, runs: Runs) -> Judgement:
        """Asks whether the figure is inside the 95 % prediction interval of our runs."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        ends = prediction_interval(list(found.values()))
        if ends is None:
            return Judgement(_missing(found) or "not run", ours, "prediction interval")
        inside = ends[0] <= self.number <= ends[1]
        test = f"95 % prediction interval {_interval(ends)}"
        return Judgement("holds" if inside else "does not hold", ours, test)


@dataclass(frozen=True)
class AtLeast:
    """A claim that an accuracy is at least a figure."""

    arm: str
    number: float
    metric: str = ACCURACY

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)

    def judge(self, runs: Runs) -> Judgement:
        """Asks on which side of the figure the 95 % confidence interval of our mean is."""
        found = values(runs, self.arm, self.metric)
        ours = f"{self.arm}: {spread(found)}"
        ends = mean_interval(list(found.values()))
        if ends is None:
            return Judgement(_missing(found) or "not run", ours, "confidence interval")
        verdict: Verdict = "inside noise"
        if ends[0] >= self.number:
            verdict = "holds"
        elif ends[1] < self.number:
            verdict = "does not hold"
        return Judgement(verdict, ours, f"95 % confidence interval {_interval(ends)}")


@dataclass(frozen=True)
class NoLearning:
    """A claim that a network learns nothing."""

    arm: str

    @property
    def arms(self) -> tuple[str, ...]:
        """The arm."""
        return (self.arm,)

    def judge(self, runs: Runs) -> Judgement:
        """Asks whether every run ends within a point of chance."""
        found = values(runs, self.arm)
        ours = f"{self.arm}: {spread(found)}"
        missing = _missing(found)
        at_chance = all(abs(value - CHANCE) <= _MARGIN for value in found.values())
        verdict: Verdict = missing or ("holds" if at_chance else "does not hold")
        return Judgement(verdict, ours, "every run within a point of chance")


@dataclass(frozen=True)
class Greater:
    """A claim that something is greater in one arm (or at one step) than in another.

    Attributes:
        arm: where it is greater.
        than: where it is less.
        metric: what is.
        than_metric: what is compared with it; default: the same.
        magnitude: compare absolute values.
        by: how much greater it has to be at least; the claim's words for it are in its text.
        at_most: how much greater it may be, if the claim says so.
    """

    arm: str
    than: str
    metric: str = ACCURACY
    than_metric: str | None = None
    magnitude: bool = False
    by: float = 0.0
    at_most: float | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """Both arms."""
        return tuple(dict.fromkeys((self.arm, self.than)))

    def judge(self, runs: Runs) -> Judgement:
        """Asks whether the 95 % interval of the difference is beyond the margin, or short of it."""
        ours, theirs = _pair(runs, self)
        found = difference(ours, theirs)
        if found is None:
            return Judgement(_missing(ours, theirs) or "not run", _both(self, ours, theirs), "t")
        verdicts = [_beyond(found.low, found.high, self.by)]
        if self.at_most is not None:
            verdicts.append(_beyond(-found.high, -found.low, -self.at_most))
        return Judgement(_worst(verdicts), _both(self, ours, theirs), _words(found))


def _beyond(low: float, high: float, margin: float) -> Verdict:
    """Whether all of an interval is beyond a margin, short of it, or neither."""
    if low > margin:
        return "holds"
    return "does not hold" if high < margin else "inside noise"


def _pair(runs: Runs, judge: Greater) -> tuple[dict[int, float], dict[int, float]]:
    ours = values(runs, judge.arm, judge.metric)
    theirs = values(runs, judge.than, judge.than_metric or judge.metric)
    if judge.magnitude:
        ours = {seed: abs(value) for seed, value in ours.items()}
        theirs = {seed: abs(value) for seed, value in theirs.items()}
    return ours, theirs


def _both(judge: Greater, ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    at = judge.than_metric is not None and judge.arm == judge.than
    names = (judge.metric, judge.than_metric) if at else (judge.arm, judge.than)
    return f"{names[0]}: {spread(ours)}; {names[1]}: {spread(theirs)}"


def _words(found: Difference) -> str:
    ends = _interval((found.low, found.high))
    return f"difference {found.mean:+.4f} ({ends}), {found.test}, p = {found.p:.2g}"


@dataclass(frozen=True)
class NoGain:
    """A claim that none of some changes brings a significant improvement.

    Attributes:
        changed: the arms with a change.
        than: the arm without.
        metric: what is not improved.
        than_metric: of the arm without; default: the same.
    """

    changed: tuple[str, ...]
    than: str
    metric: str = ACCURACY
    than_metric: str | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(dict.fromkeys((*self.changed, self.than)))

    def judge(self, runs: Runs) -> Judgement:
        """Judges each change, and takes the worst verdict.

        A change is a gain if it is significantly better, at a level of 5 % for all changes
        together (Bonferroni); it is none if the interval of its difference ends below a point.
        """
        verdicts, ours, tests = [], [], []
        for arm in self.changed:
            pair = Greater(arm, self.than, self.metric, self.than_metric)
            a, b = _pair(runs, pair)
            ours.append(f"{self.metric if arm == self.than else arm}: {spread(a)}")
            found = difference(a, b)
            verdicts.append(_missing(a, b) or self._verdict(found))
            tests.append(f"{arm}: {_words(found)}" if found else f"{arm}: not tested")
        without = self._than_metric if self.changed == (self.than,) else self.than
        ours.append(f"{without}: {spread(values(runs, self.than, self._than_metric))}")
        return Judgement(_worst(verdicts), "; ".join(ours), "; ".join(tests))

    @property
    def _than_metric(self) -> str:
        return self.than_metric or self.metric

    def _verdict(self, found: Difference | None) -> Verdict:
        assert found is not None
        if found.mean > 0 and found.p < 0.05 / len(self.changed):
            return "does not hold"
        return "holds" if found.high < _MARGIN else "inside noise"


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    order: tuple[Verdict, ...] = ("does not hold", "not run", "too few seeds", "inside noise")
    return next((verdict for verdict in order if verdict in verdicts), "holds")


@dataclass(frozen=True)
class Everywhere:
    """A claim that holds only where all of several hold.

    Attributes:
        parts: how each is judged, by a word for it.
    """

    parts: Mapping[str, Judge]

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms."""
        return tuple(dict.fromkeys(arm for part in self.parts.values() for arm in part.arms))

    def judge(self, runs: Runs) -> Judgement:
        """Judges each, and takes the worst verdict."""
        found = {word: part.judge(runs) for word, part in self.parts.items()}
        return Judgement(
            _worst([judged.verdict for judged in found.values()]),
            "; ".join(f"{word}: {judged.ours}" for word, judged in found.items()),
            "; ".join(f"{word}: {judged.test}" for word, judged in found.items()),
        )


@dataclass(frozen=True)
class Claim:
    """A claim of the report.

    Attributes:
        key: its name here.
        section: where the report makes it.
        text: what it says.
        number: its figure, if it gives one.
        judge: how it is judged.
        drawn: arms that its figure needs besides.
    """

    key: str
    section: str
    text: str
    number: str
    judge: Judge
    drawn: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """All arms that are run for it."""
        return (*self.judge.arms, *self.drawn)


_DEEP = "mlp_deep"
CLAIMS = (
    Claim("numpy", "1.2", "The NumPy MLP reaches", "48.38 %", Figure("mlp_numpy", 0.4838)),
    Claim("pytorch", "2.1", "The same MLP in PyTorch reaches", "49.12 %", Figure("mlp", 0.4912)),
    Claim(
        "numpy-pytorch",
        "2.1",
        "PyTorch's MLP is no better than NumPy's but for random numbers",
        "+0.74 points",
        NoGain(("mlp",), "mlp_numpy"),
    ),
    Claim(
        "more-steps",
        "2.1",
        "More iterations do not help significantly (4,000 steps against 1,400)",
        "",
        NoGain(("longer",), "mlp"),
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
        "That is its peak (4,000 steps are no better than 2,300)",
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
    Claim("adam-deep", "2.1", "So it does for the best network", "", Greater(_DEEP, "sgd", by=0.1)),
    Claim(
        "no-schedule",
        "2.1",
        "Five hidden layers, Adam and longer training reach",
        "52 %",
        Figure("no_schedule", 0.52),
    ),
    Claim("schedule", "2.1", "The schedule improves on that", "", Greater(_DEEP, "no_schedule")),
    Claim(
        "best",
        "2.1",
        "With it, accuracy after 2,000 iterations is about",
        "56 %",
        Figure(_DEEP, 0.56, "test_curve/acc@2000"),
    ),
    Claim(
        "plateau",
        "2.1",
        "After that the performance plateaus: no significant gain from 2,000 to 4,000 steps",
        "",
        NoGain((_DEEP,), _DEEP, "test_curve/acc@4000", "test_curve/acc@2000"),
    ),
    Claim(
        "depth",
        "2.1",
        "More than one hidden layer (five) is a key to it: better at all",
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
        "So it does in each of the five hidden layers",
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
        "Batch normalisation bears a higher learning rate (at 0.01, better than without)",
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
        "Layer normalisation works perfectly fine with them (no gain from 200 over 2)",
        "",
        NoGain(("layer_200",), "layer_2"),
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
        "What his script measured instead, accuracy on its training stream, is",
        "0.9099",
        Figure("cnn_report", 0.9099, "val/acc"),
    ),
    Claim(
        "cnn-expected",
        "4.1",
        "That is better than the task statement expects (0.79)",
        "> 0.79",
        AtLeast("cnn_report", 0.79),
    ),
    Claim(
        "cnn-specified",
        "4.1",
        "(not in the report:) the CNN as specified reaches what the statement expects",
        "0.79",
        AtLeast("cnn", 0.79),
    ),
)
