"""The report's NumPy network (section 1.2), trained by Lightning without autograd."""

import itertools
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import ReduceLROnPlateau
from pytorch_lightning.utilities.compile import to_uncompiled
from torch import Tensor, nn

from custom_ops import numpy_ops
from lightning_modules.classifier import Classifier
from lightning_modules.mlp import IMAGE_SHAPE, check_hidden_units

_NOT_TRACED = "NumPyMLP computes with NumPy, which can't be traced or compiled"
_TENSOR_TYPES = (Tensor, nn.Parameter)


class NumPyLinear(nn.Module):
    """A `numpy_ops.Linear` whose weights are Parameters, for optimisers and checkpoints.

    Arrays and Parameters share memory; `bind` restores this after a copy or a load.
    """

    def __init__(self, op: numpy_ops.Linear) -> None:
        super().__init__()
        self.op = op
        self.weight = nn.Parameter(torch.from_numpy(op.weight))
        self.bias = nn.Parameter(torch.from_numpy(op.bias))

    def bind(self) -> numpy_ops.Linear:
        """Returns the operation, reading the Parameters' memory."""
        self.op.weight = self.weight.detach().numpy()
        self.op.bias = self.bias.detach().numpy()
        return self.op

    def take_gradients(self) -> None:
        """Gives the gradients of NumPy to the Parameters."""
        self.weight.grad = torch.from_numpy(self.op.grad_weight)
        self.bias.grad = torch.from_numpy(self.op.grad_bias)


def _was_compiled(model: Classifier) -> bool:
    """Removes a compiled version of the model; returns whether there was one."""
    try:
        to_uncompiled(model)
    except ValueError:
        return False
    return True


class NumPyMLP(Classifier):
    """A multi-layer perceptron of ELU units; NumPy computes all gradients.

    It is the network of `MLP` (ELU, no normalisation), built from `custom_ops.numpy_ops`. NumPy
    computes forward and backward pass, and autograd never runs. Optimisers, schedules, metrics and
    checkpoints are those of Lightning, through manual optimisation. CPU only.

    Args:
        hidden_units: width of each hidden layer; an empty list is logistic regression.
        weight_std: standard deviation of the initial weights; biases start at 0.
        **kwargs: see `Classifier`.

    Raises:
        ValueError: for a width below 1, a negative std, label smoothing, or an accelerator or
            precision other than the CPU with float32.
    """

    def __init__(
        self,
        hidden_units: list[int] = [100],  # noqa: B006 - never changed; a CLI default must be a list
        weight_std: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_hidden_units(hidden_units)
        if weight_std < 0:
            raise ValueError(f"model.weight_std must not be negative, got {weight_std}")
        if self.label_smoothing:
            raise ValueError("NumPyMLP has no label smoothing: leave model.label_smoothing at 0")
        self.automatic_optimization = False
        # Drawn from torch's generator, so that seed_everything decides the weights here too.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        widths = [int(np.prod(IMAGE_SHAPE)), *hidden_units, self.num_classes]
        self.linears = nn.ModuleList(
            NumPyLinear(numpy_ops.Linear(fan_in, fan_out, weight_std, rng))
            for fan_in, fan_out in itertools.pairwise(widths)
        )
        self.activations = [numpy_ops.ELU() for _ in hidden_units]
        self.criterion = numpy_ops.SoftmaxCrossEntropy()

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses gradient clipping, and accepts only the CPU with float32.

        Raises:
            ValueError: naming the flag to remove.
        """
        if trainer.strategy.root_device.type != "cpu":
            raise ValueError("NumPyMLP computes with NumPy: run it with --trainer.accelerator cpu")
        if trainer.precision != "32-true":
            raise ValueError("NumPyMLP computes in float32: leave --trainer.precision at 32-true")
        if _was_compiled(self):
            raise ValueError(f"{_NOT_TRACED}: leave torch.compile out")
        for name, default in (("gradient_clip_val", None), ("accumulate_grad_batches", 1)):
            if getattr(trainer, name) != default:
                raise ValueError(
                    f"NumPyMLP takes a step with every batch's own gradients: leave "
                    f"--trainer.{name} out"
                )

    def flops_of_image(self) -> float:
        """Two operations for each weight in three products: outputs and both gradients."""
        return 6.0 * sum(weight.numel() for weight in self.parameters() if weight.ndim == 2)

    def setup(self, stage: str) -> None:
        """Refuses unsupported settings, for a Trainer that did not call `check_trainer`."""
        self.check_trainer(self.trainer)

    def _operations(self) -> list[numpy_ops.Linear | numpy_ops.ELU]:
        linears = [layer.bind() for layer in self.linears if isinstance(layer, NumPyLinear)]
        operations: list[numpy_ops.Linear | numpy_ops.ELU] = [linears[0]]
        for activation, linear in zip(self.activations, linears[1:], strict=True):
            operations += [activation, linear]
        return operations

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``.

        Raises:
            TypeError: when traced, because the trace would keep the output of one batch.
        """
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        if traced or type(images) not in _TENSOR_TYPES:
            raise TypeError(f"{_NOT_TRACED}: load its weights into an MLP, which can be exported")
        x = images.flatten(1).numpy()
        for operation in self._operations():
            x = operation.forward(x)
        return torch.from_numpy(x)

    @torch.no_grad()
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Takes one optimiser step with NumPy's gradients; returns the loss, a scalar."""
        images, labels = batch
        logits = self(images)
        targets = np.eye(logits.shape[1], dtype=np.float32)[labels.numpy()]
        loss = torch.tensor(self.criterion.forward(logits.numpy(), targets))
        dout = self.criterion.backward(logits.numpy(), targets)
        for operation in reversed(self._operations()):
            dout = operation.backward(dout)
        for layer in self.linears:
            layer.take_gradients()  # type: ignore[operator]
        trainer = self.trainer_if_any()
        if trainer and trainer.world_size > 1:  # as torch does with its gradients
            for weight in self.parameters():
                weight.grad = trainer.strategy.reduce(weight.grad, reduce_op="mean")
        self.optimizers().step()  # type: ignore[union-attr]
        self._step_schedule("step")
        self.note(loss, logits, labels)
        return loss

    def to_torchscript(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses TorchScript.

        Raises:
            TypeError: always.
        """
        raise TypeError(f"{_NOT_TRACED}: load its weights into an MLP, which can be exported")

    def on_train_epoch_end(self) -> None:
        """Steps a schedule in epochs: with manual optimisation, this is the task of the model."""
        self._step_schedule("epoch")

    def _step_schedule(self, interval: str) -> None:
        scheduler = self.lr_schedulers() if self.lr_interval == interval else None
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(self._monitored(scheduler.monitor))
        elif scheduler is not None:
            scheduler.step()  # type: ignore[union-attr]

    def _monitored(self, metric: str) -> Tensor:
        logged = self.trainer.callback_metrics
        if metric not in logged:
            raise ValueError(
                f"ReduceLROnPlateau monitors {metric}, which is not logged yet: take a metric of "
                "the validation, such as val/loss, and --model.lr_interval epoch"
            )
        return logged[metric]
