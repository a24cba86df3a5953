"""The experiments that the report's claims need; their configs are in ``configs/``."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Arm:
    """An experiment.

    Attributes:
        name: name of its runs, before the seed.
        configs: files below ``configs/`` without their suffix; later files override earlier ones.
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
# Chosen on validation at batch size 200, see configs/ablations/norm_batch.yaml.
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
