"""The environment of a run: code and versions, and what its hardware is good at."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from experiments.records.machine import hardware, peak_gflops

_PROJECT = Path(__file__).resolve().parents[2]
_BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "arm_bf16")
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "wandb")


def environment_fields() -> dict[str, Any]:
    """The date, code, hardware and versions that are published with a measurement.

    The machine is calibrated again, because a measurement is compared with it.
    """
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "git": git_state(),
        "hardware": hardware(again=True),
        "versions": versions(),
    }


def git_state() -> dict[str, Any]:
    """The commit of this project's checkout and whether files differ from it.

    Returns:
        ``commit`` and ``dirty``; both ``None`` without git, or if this project is only a copy
        inside another repository, whose commits do not describe it.
    """
    found = _git("rev-parse", "--show-toplevel", "HEAD")
    top, _, commit = (found or "").partition("\n")
    if not commit or Path(top).resolve() != _PROJECT:
        return {"commit": None, "dirty": None}
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PROJECT), *arguments],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
            check=True,
            env=_without_repository(),
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _without_repository() -> dict[str, str]:
    """The environment without the variables that point git to another repository, as in a hook."""
    known = os.environ.items()
    return {k: v for k, v in known if not k.startswith("GIT_") or k.startswith("GIT_CONFIG")}


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that affect results."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fast_precision(accelerator: str) -> Literal["bf16-mixed", "16-mixed", "32-true"]:
    """The precision in which a trainer's device computes convolutions fastest.

    Without instructions for bfloat16, this type is slower than float32. With them it can be slower,
    too: some processors do half as many operations a second in bfloat16 as in float32. So the
    calibration of the machine decides, see `experiments.records.machine`; without one, the
    instructions do. On a CPU, float16 is always slower.

    Args:
        accelerator: the trainer's option.

    Returns:
        ``bf16-mixed`` if the device multiplies bfloat16 faster, ``16-mixed`` on CUDA devices that
        do not multiply it, otherwise ``32-true``.
    """
    import torch  # noqa: PLC0415 - as above

    if accelerator in {"cuda", "gpu", "auto"} and torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if bf16 else "16-mixed"
    if accelerator not in {"cpu", "auto"}:
        return "32-true"
    capabilities = torch.cpu.get_capabilities()
    if not any(capabilities.get(name) for name in _BF16_INSTRUCTIONS):
        return "32-true"
    parts = hardware()
    bf16, fp32 = (peak_gflops(parts, name, on_gpu=False) for name in ("bf16-mixed", "32-true"))
    return "32-true" if bf16 is not None and fp32 is not None and bf16 < fp32 else "bf16-mixed"
