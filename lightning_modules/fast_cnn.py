"""The network of the CIFAR-10 speed records: small, and designed for a few epochs."""

import itertools
import math
from typing import Any, Literal

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from custom_ops import Conv2d, batch_norm_gelu
from custom_ops.functions import is_eager
from custom_ops.torch_seam import has_hooks
from lightning_modules.classifier import Classifier
from lightning_modules.cnn import Convolution, convolution_class
from lightning_modules.mlp import IMAGE_SHAPE
from lightning_modules.muon import Muon
from lightning_modules.schedules import steps_to_schedule

Views = Literal["one", "mirror", "six"]

_PATCH = 2  # side in pixels of the whitened patches
_WHITENING_EPS = 5e-4
WHITENING_IMAGES = 5000
SIDES = range(16, 33)  # of images; three poolings and a 2x2 patch leave one pixel of 16
_GROWTH = 4  # step in pixels by which reduced images grow


class FastCNN(Classifier):
    """A frozen whitening convolution and three groups of two convolutions [1]_.

        whiten 2x2 (24 filters) -> GELU
        -> 3 x (conv 3x3 -> max-pool 2 -> BN -> GELU -> conv 3x3 -> BN -> GELU)
        -> maximum over the 3x3 pixels left -> linear, without bias

    1,971,352 trainable parameters at the default widths. Batch norms have no scale. Convolutions
    begin as the identity on their first input channels. The first filters are the principal
    components of 2x2 patches of training images, scaled to variance 1, and their negatives.

    Args:
        widths: channels of the three groups.
        views: the views whose logits an evaluation averages. ``one``: the image itself.
            ``mirror``: also its mirror image. ``six``: these two (a quarter each), and both shifted
            by a pixel up and left, and down and right (an eighth each). A test also logs
            ``test/acc_one_view``.
        small_until: fraction of training with reduced images, which take less time and teach
            nearly as much [2]_.
        small_size: side in pixels of the first images; they grow in steps of 4 pixels.
        whiten_bias_until: fraction of training after which the whitening bias is frozen. Then no
            gradient of the first layer is needed.
        bn_momentum: share of a batch in the running statistics; use less for small batches.
        channels_last: store activations as NHWC; same results, faster convolutions.
        convolution: ``winograd`` for 3x3 convolutions that take less time on a CPU;
            ``native`` for those of PyTorch.
        fused: compute pooling, batch norm and GELU by `custom_ops.batch_norm_gelu` in training on a
            CPU, in fewer passes over memory, unless one of these modules has a hook. Then
            Winograd's convolutions take the maxima themselves (`custom_ops.conv2d_max_pool`).
        compiled: compile the groups of convolutions with `torch.compile`. This takes up to a minute
            for each size of images, longer than the training on a GPU.
        optimizer: makes the optimiser from the parameters.
        **kwargs: see `Classifier`.

    Raises:
        ValueError: for a width below 1, unknown views, or a size or fraction out of range.

    .. [1] K. Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024, arXiv:2404.00498.
    .. [2] J. Howard, Training Imagenet in 3 hours for $25; and CIFAR10 for $0.26, 2018,
       https://www.fast.ai/posts/2018-04-30-dawnbench-fastai.html.
    """

    takes_half_precision = True

    def __init__(
        self,
        widths: tuple[int, int, int] = (64, 256, 256),
        views: Views = "six",
        small_until: float = 0.0,
        small_size: int = 24,
        whiten_bias_until: float = 0.375,
        bn_momentum: float = 0.4,
        channels_last: bool = True,
        convolution: Convolution = "winograd",
        fused: bool = True,
        compiled: bool = False,
        optimizer: OptimizerCallable = Muon,
        **kwargs: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, **kwargs)
        if views not in ("one", "mirror", "six"):
            raise ValueError(f"model.views must be one, mirror or six, got {views}")
        if min(widths) < 1:
            raise ValueError(f"model.widths must be positive, got {widths}")
        if small_size not in SIDES:
            raise ValueError(f"model.small_size must be 16 to 32 pixels, got {small_size}")
        for name, part in (("small_until", small_until), ("whiten_bias_until", whiten_bias_until)):
            if not 0 <= part <= 1:
                raise ValueError(f"model.{name} must be a part of training, 0 to 1, got {part}")
        self.views = views
        self.small_until = small_until
        self.small_size = small_size
        self.whiten_bias_until = whiten_bias_until
        self._steps = math.inf  # of the whole fit
        # Both change during training, between two batches.
        self._size = self._size_at(0.0, IMAGE_SHAPE[-1])
        self._bias_is_frozen = False
        self.channels_last = channels_last
        filters = 2 * 3 * _PATCH**2
        self.whiten = nn.Conv2d(3, filters, _PATCH)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.register_buffer("whitened", torch.tensor(False))
        channels = (filters, *widths)
        self.groups = nn.Sequential(
            *(
                _Group(a, b, bn_momentum, convolution, fused)
                for a, b in itertools.pairwise(channels)
            )
        )
        self.head = nn.Linear(widths[-1], self.num_classes, bias=False)
        nn.init.normal_(self.head.weight, std=1 / 256)
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if compiled:
            self.groups.compile()

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)`` from normalised images ``(B, 3, 32, 32)``."""
        if self.channels_last:
            images = images.to(memory_format=torch.channels_last)
        bias = self.whiten.bias
        assert bias is not None
        if self.training and self._bias_is_frozen:
            bias = bias.detach()
        x = F.gelu(F.conv2d(images, self.whiten.weight, bias))
        logits: Tensor = self.head(self.groups(x).amax((2, 3)))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Computes the loss of a batch, a scalar; early in training, images are reduced."""
        images, labels = batch
        return super().training_step((_resize(images, self._size), labels), batch_idx)

    def training_stage(self, images: Tensor) -> tuple[int, ...]:
        """The side of the reduced images, and whether the first bias is frozen."""
        return self._size, int(self._bias_is_frozen)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Sets values for the training step, which may be compiled."""
        super().on_train_batch_start(batch, batch_idx)
        progress = self._progress()
        self._size = self._size_at(progress, batch[0].shape[3])
        # Never if processes share gradients.
        self._bias_is_frozen = self.trainer.world_size == 1 and progress >= self.whiten_bias_until

    def reduce(self, images: Tensor, progress: float) -> Tensor:
        """Reduces images ``(B, 3, H, H)`` by interpolation to the size for this part of training.

        Args:
            images: images of full size.
            progress: the completed fraction of training.

        Returns:
            Images of ``small_size`` at first. Equal parts of training then increase the size by 4
            pixels each. From ``small_until`` on, the images themselves.
        """
        return _resize(images, self._size_at(progress, images.shape[3]))

    def _size_at(self, progress: float, full: int) -> int:
        sizes = range(self.small_size, full, _GROWTH)
        if progress >= self.small_until or not sizes:
            return full
        return sizes[int(len(sizes) * progress / self.small_until)]

    def _progress(self) -> float:
        """The completed fraction of training."""
        trainer = self.trainer_if_any()
        return 0.0 if trainer is None else trainer.global_step / self._steps

    # ---- evaluation -----------------------------------------------------------------------------

    def evaluate(self, images: Tensor) -> Tensor:
        """Computes logits ``(B, num_classes)``, the weighted mean over `views` of each image."""
        plain: Tensor = self(images).float()
        self._plain = plain
        if self.views == "one":
            return plain
        in_place: Tensor = (plain + self(images.flip(3)).float()) / 2
        if self.views == "mirror":
            return in_place
        size = images.shape[2]
        padded = F.pad(images, [1] * 4, mode="reflect")
        corners = [padded[:, :, i : i + size, i : i + size] for i in (0, 2)]
        shifted = [self(x).float() for corner in corners for x in (corner, corner.flip(3))]
        logits: Tensor = (in_place + torch.stack(shifted).mean(0)) / 2
        return logits

    def on_test_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Adds a batch to the test metrics; the accuracy of the image itself counts separately."""
        super().on_test_batch_end(outputs, batch, batch_idx, dataloader_idx)
        if self.views != "one":
            correct = (self._plain.argmax(1) == batch[1]).float()
            self.log("test/acc_one_view", correct.mean(), batch_size=len(correct), sync_dist=True)

    # ---- the first convolution ------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Whitens with the training images, unless the weights come from a checkpoint."""
        self._steps = steps_to_schedule(self.trainer_if_any()) or math.inf
        if not self.whitened:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            self.whiten_with(data.training_sample(WHITENING_IMAGES).to(self.device))

    @torch.no_grad()
    def whiten_with(self, images: Tensor) -> None:
        """Sets the first filters from normalised images ``(N, 3, H, W)``.

        The filters are V / sqrt(lambda + eps) and their negatives, with the eigenvectors V and the
        eigenvalues lambda of the second moments of all patches.
        """
        eigenvalues, eigenvectors = torch.linalg.eigh(_patch_moments(images.float()))
        scaled = eigenvectors / (eigenvalues + _WHITENING_EPS).sqrt()
        filters = scaled.T.reshape(-1, 3, _PATCH, _PATCH).flip(0)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))
        self.whitened.fill_(True)  # type: ignore[operator]


def _resize(images: Tensor, size: int) -> Tensor:
    if size == images.shape[3]:
        return images
    # On a CPU there is no such kernel for half precision.
    smaller = F.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return smaller.to(images.dtype)


def _patch_moments(images: Tensor) -> Tensor:
    """Second moments of all patches, (3 p², 3 p²)."""
    patches = F.unfold(images, _PATCH).transpose(1, 2).flatten(0, 1)
    return patches.T @ patches / len(patches)


class _Group(nn.Sequential):
    """Two convolutions with what follows each; `fused` is an argument of `FastCNN`."""

    def __init__(
        self, fan_in: int, width: int, bn_momentum: float, kind: Convolution, fused: bool
    ) -> None:
        super().__init__(
            _convolution(fan_in, width, kind),
            nn.MaxPool2d(2),
            _batch_norm(width, bn_momentum),
            nn.GELU(),
            _convolution(width, width, kind),
            _batch_norm(width, bn_momentum),
            nn.GELU(),
        )
        self.fused = fused
        self._made = self._settings()

    def _settings(self) -> list[tuple[nn.Module, str]]:
        return [(m, m.extra_repr()) for m in self]

    def _fuses(self, x: Tensor) -> bool:
        """Whether X meets the modules made above, all of them unchanged and in training."""
        return (
            self.fused
            and is_eager(x)
            and all(m.training and not has_hooks(m) and "forward" not in vars(m) for m in self)
            and self._settings() == self._made
        )

    def __getitem__(self, index: Any) -> Any:
        """Returns a module, or a part of the group as a `nn.Sequential`."""
        return nn.Sequential(*self)[index]

    def forward(self, input: Tensor) -> Tensor:
        if not self._fuses(input):
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        first, _, pooled_norm, _, second, norm, _ = self
        if isinstance(first, Conv2d):
            x = _normalised(first.max_pooled(input), pooled_norm, False)
        else:
            x = _normalised(first(input), pooled_norm, True)
        return _normalised(second(x), norm, False)

    def __prepare_scriptable__(self) -> nn.Sequential:
        """What TorchScript compiles instead: the modules in turn."""
        plain = nn.Sequential(*self)
        plain.training = self.training
        return plain


def _normalised(x: Tensor, norm: nn.Module, pool: bool) -> Tensor:
    """What a module of batch norm and its neighbours compute in training, fused."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    statistics, parameters = (norm.running_mean, norm.running_var), (norm.weight, norm.bias)
    return batch_norm_gelu(x, *statistics, *parameters, True, norm.momentum, norm.eps, pool)


def _convolution(fan_in: int, width: int, kind: Convolution) -> nn.Conv2d:
    convolution = convolution_class(kind)(fan_in, width, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:fan_in])
    return convolution


def _batch_norm(width: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm
