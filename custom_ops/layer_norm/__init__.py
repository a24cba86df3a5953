"""Layer normalisation: formula, `torch.autograd.Function`, functional form and module."""

from custom_ops.layer_norm.function import LayerNormFunction, layer_norm
from custom_ops.layer_norm.module import LayerNorm

__all__ = ["LayerNorm", "LayerNormFunction", "layer_norm"]
