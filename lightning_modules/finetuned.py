"""A network of torchvision with weights learned elsewhere, fine-tuned (the bonus 4 b)."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from lightning_modules.classifier import Classifier

# The files of DenseNets are older than the names of their layers: norm.1 became norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")


class FineTuned(Classifier):
    """A classification network of torchvision with a new last layer.

    The weights come from a file, as torchvision distributes them (a state dict, of any number of
    classes); nothing is downloaded. Images are enlarged on the device, since these networks were
    made for larger ones.

    Args:
        architecture: a name of ``torchvision.models``, for example ``resnet18``.
        weights: the file; null trains from scratch. It is read when a fit begins, not when a run
            is tested.
        image_size: side of the enlarged images, in pixels.
        freeze: train the last layer alone; the others keep weights and running statistics.
        **kwargs: see `Classifier`.

    Raises:
        ValueError: for an unknown architecture, a size that it does not take, or a file that can't
            be read or is of another network.
    """

    takes_half_precision = True

    def __init__(
        self,
        architecture: str = "resnet18",
        weights: str | None = None,
        image_size: int = 128,
        freeze: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        known = models.list_models(module=models)
        if architecture not in known:
            raise ValueError(f"no architecture {architecture!r}; there are {', '.join(known)}")
        if image_size < 32:
            raise ValueError(f"model.image_size must be at least 32, got {image_size}")
        if freeze and weights is None:
            raise ValueError("model.freeze keeps what model.weights brings: name a file")
        self.weights = weights
        self.image_size = image_size
        self.frozen = freeze
        self.network = models.get_model(
            architecture, weights=None, num_classes=self.hparams["num_classes"]
        )
        self.network.to(memory_format=torch.channels_last)
        self._try_size()
        if freeze:
            self._freeze()

    def _try_size(self) -> None:
        """Lets an image of this size go through without any arithmetic: some networks want 224."""
        state = {name: value.to("meta") for name, value in self.network.state_dict().items()}
        images = torch.zeros(2, 3, self.image_size, self.image_size, device="meta")
        try:
            with torch.no_grad():
                torch.func.functional_call(self.network, state, images)
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"a {self.hparams['architecture']} takes no images of {self.image_size} pixels "
                f"({str(error).splitlines()[0].rstrip('.')}): try --model.image_size 224, or 299"
            ) from error

    def _freeze(self) -> None:
        last = self._outputs()
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] in last)
        self.network.eval()

    def _outputs(self) -> set[str]:
        """The layers that put out classes: the last one, and those of auxiliary classifiers."""
        classes = self.hparams["num_classes"]
        found = {
            name: getattr(layer, "out_features", getattr(layer, "out_channels", None))
            for name, layer in self.network.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        *_, last = found
        return {last} | {n for n, size in found.items() if size == classes and "aux" in n.lower()}

    def setup(self, stage: str) -> None:
        """Loads the weights when a fit begins; a checkpoint that it goes on from comes after."""
        if stage == "fit" and self.weights is not None:
            self._load(Path(self.weights))

    def _load(self, path: Path) -> None:
        found = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in _read(path).items()}
        ours, outputs = self.network.state_dict(), self._outputs()
        for key in [*found, *ours]:
            if key.rpartition(".")[0] in outputs:
                found.pop(key, None)  # of other classes
            elif key.endswith("num_batches_tracked"):
                continue  # files older than it lack it
            elif key not in found or key not in ours or found[key].shape != ours[key].shape:
                raise ValueError(
                    f"{path} is not of a {self.hparams['architecture']}: {key} differs; "
                    "see --model.architecture"
                )
        self.network.load_state_dict(found, strict=False)

    def train(self, mode: bool = True) -> "FineTuned":
        """Sets the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.network.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from images ``(B, 3, 32, 32)``."""
        size = (self.image_size, self.image_size)
        large = F.interpolate(images, size, mode="bilinear", antialias=False)
        outputs = self.network(large.to(memory_format=torch.channels_last))
        # With auxiliary classifiers a tuple while training: the main one's logits come first.
        logits: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        return logits


def _read(path: Path) -> dict[str, Tensor]:
    remedy = "name a state dict of torchvision with --model.weights"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ValueError(f"no weights {path}; {remedy}") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than weights and is refused; {remedy}") from error
    except (OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} can't be read: {reason}; {remedy}") from error
    is_state = isinstance(content, dict) and all(isinstance(v, Tensor) for v in content.values())
    if not is_state:
        raise ValueError(f"{path} is no state dict; {remedy}")
    return dict(content)
