"""What the tests of the hand-derived operators and their kernels share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

VARIANTS = {  # with weight, with bias
    "affine": (True, True),
    "no_bias": (True, False),
    "no_weight": (False, True),
    "none": (False, False),
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same in every dtype but for rounding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def plain(
    x: Tensor,
    row: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation as one would write it down; in float64 it is the truth."""
    dims = tuple(range(-len(row), 0))
    centred = x - x.mean(dims, keepdim=True)
    y = centred / (centred.square().mean(dims, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def run_with_instructions(isa: str, file: str, tests: Sequence[str], cache: Path) -> None:
    """Runs tests of a file in a new process, with kernels for other instructions in a new cache.

    Args:
        isa: flags of the compiler, such as ``-mavx2 -mfma``.
        file: ``__file__`` of the tests.
        tests: parts of their names.
        cache: an empty folder.
    """
    levels = ("DEFAULT", "AVX2", "AVX512")
    needed = levels[1 + ("avx512" in isa)]
    if levels.index(torch.backends.cpu.get_cpu_capability()) < levels.index(needed):
        pytest.skip(f"needs {needed}")
    if not shutil.which("g++"):
        pytest.skip("needs g++")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", file, "-k", " or ".join(tests)],
        env={**os.environ, "CXX": "g++", "CUSTOM_OPS_ISA": isa, "XDG_CACHE_HOME": str(cache)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
    assert len([*cache.rglob("*.so")]) == 1
