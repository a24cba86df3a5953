"""A network of torchvision with weights learned elsewhere, fine-tuned (the bonus 4 b)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from lightning_modules.classifier import Classifier
from lightning_modules.weight_files import difference, prefix_of, read_state

# The files of DenseNets are older than the names of their layers: norm.1 became norm1.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
# What torch's wrappers of a part put into the names of its layers.
_WRAPPERS = re.compile(
    r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|(?<=\.)module)\."
)


class FineTuned(Classifier):
    """A classification network of torchvision with a new last layer.

    The weights come from a file, as torchvision distributes them (a state dict, of any number of
    classes); nothing is downloaded. A checkpoint that holds one is taken too, as are names with
    something in front (``module.``, ``_orig_mod.``, ``backbone.``); the last layer is always new.
    Images are enlarged on the device, since these networks were made for larger ones.

    Args:
        architecture: a name of ``torchvision.models``, for example ``resnet18``.
        weights: the file; null trains from scratch. It is read when a fit begins, not when one
            goes on from a checkpoint or a run is tested.
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
        self._has_weights = False
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

    def prepare_fit(self, goes_on: bool) -> None:
        """Loads the file of weights, unless a checkpoint brings them.

        Raises:
            ValueError: if it can't be read, or is of another network.
        """
        if self.weights is not None and not goes_on and not self._has_weights:
            self._load(Path(self.weights))
        self._has_weights = True

    def setup(self, stage: str) -> None:
        """Loads the weights when a fit begins that `prepare_fit` was not called for."""
        if stage == "fit":
            self.prepare_fit(goes_on=False)

    def _load(self, path: Path) -> None:
        read = read_state(path)
        found = {_OLD_DENSENET.sub(r"\1\2", _WRAPPERS.sub("", key)): read[key] for key in read}
        try:
            if len(found) < len(read):
                raise ValueError("it holds some weights twice, wrapped and not, save one alone")
            state = self._matching(found)
        except ValueError as error:
            architecture = self.hparams["architecture"]
            raise ValueError(
                f"{path} is not of a {architecture}: {error}; see --model.architecture"
            ) from error
        self.network.load_state_dict(state, strict=False)

    def _matching(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a file has for all layers but the last, under this network's names."""
        heads = tuple(f"{name}." for name in self._outputs())
        ours = {
            key: value
            for key, value in self.network.state_dict().items()
            if not key.startswith(heads)
        }
        # Files older than these counts lack them.
        asked = [key for key in ours if not key.endswith("num_batches_tracked")]
        before = prefix_of(found, asked)
        theirs = {
            name: value
            for key, value in found.items()
            if key.startswith(before) and not (name := key.removeprefix(before)).startswith(heads)
        }
        for key in dict.fromkeys([*asked, *theirs]):
            is_count = key not in ours and key.endswith("num_batches_tracked")
            if not is_count and (reason := difference(theirs.get(key), ours.get(key))):
                also = [name for name in found if f".{name}".endswith(f".{key}")]
                elsewhere = f" (it is there as {also[0]})" if also and key not in theirs else ""
                raise ValueError(f"{key} {reason}{elsewhere}")
        return theirs

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
