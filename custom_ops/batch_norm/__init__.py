"""Pooling, batch normalisation and GELU in one operator: `formula`, `kernels`, `function`."""

from custom_ops.batch_norm.function import BatchNormGELUFunction, batch_norm_gelu

__all__ = ["BatchNormGELUFunction", "batch_norm_gelu"]
