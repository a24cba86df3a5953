"""Layer normalisation as a module."""

from torch import Tensor, nn

from custom_ops.layer_norm.function import layer_norm


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed by `custom_ops.layer_norm`: same arguments, state dict and repr.

    It is a subclass, so code that searches for `nn.LayerNorm` instances also finds it.

        Y = gamma (X - mean) / sqrt(var + eps) + beta

    with the mean and the biased variance of each row; a row is the last dimensions of X.

    Args:
        normalized_shape: shape of a row, an int or a sequence of ints.
        eps: added to the variance.
        elementwise_affine: learn gamma (weight, 1 at first) and beta (bias, 0 at first).
        bias: False leaves out beta.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Shapes:
        X and Y are (..., *normalized_shape); weight and bias are normalized_shape.

    Raises:
        ValueError: by `forward`, if X does not end in normalized_shape or is on another device.
        TypeError: by `forward`, if X is not of a real floating dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Returns Y in the shape and dtype of X."""
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
