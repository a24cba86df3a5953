"""The machine of a run: its parts, and what it computes in a second.

Two machines with the same name of a processor can differ twofold in speed. So a record also has the
family and model of the processor, and a calibration: five short measurements, which are kept in
``cifar10-lightning`` in the user's cache directory. They take about a second, once a machine.

Environment variable ``CIFAR10_CALIBRATION=off``: do not measure.
"""

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.records.files import replace_file
from experiments.records.reader import is_number, read_json
from experiments.texts import shortened

if TYPE_CHECKING:
    import torch

SWITCH = "CIFAR10_CALIBRATION"
# Instructions that decide how fast products of matrices are, by their names in /proc/cpuinfo.
_INSTRUCTIONS = (
    *("avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "sve", "sve2", "bf16", "i8mm"),
)
_PROCESSORS = Path("/proc/cpuinfo")  # Linux has it
_METHOD = 2  # of the calibration: increase it when the same machine would get other figures
_PATIENCE_S = 0.2  # for one measurement
_SIDE = {"cpu": (32, 32), "cuda": (64, 128)}  # of square matrices, as a product
_COPIED = {"cpu": 2**27, "cuda": 2**30}  # bytes, more than caches hold
_LARGEST_CACHE = 2**16  # bytes
_GIB = 2**30


def hardware(again: bool = False) -> dict[str, Any]:
    """The parts of this machine that decide digits and speed, with its calibration.

    Args:
        again: measure even if a calibration is kept; the better figures of both are kept.

    Returns:
        ``platform``, ``cpu`` (its name), ``cpu_family``, ``cpu_model`` and ``flags`` (on Linux),
        ``instructions`` (which PyTorch uses), ``cores`` that this process may use, ``threads`` of
        PyTorch, ``memory_gib``, ``gpus``, and ``calibration``, see `calibration_of`.
    """
    import torch  # noqa: PLC0415 - reading records does not need it

    parts = {
        "platform": f"{platform.system()} {platform.machine()}",
        **_processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    measured = calibration_of(parts, again)
    return parts | ({"calibration": measured} if measured else {})


def machine_name(hardware: Mapping[str, Any]) -> str:
    """A short name of a machine, the same for equal parts: ``AMD EPYC 26/2, 2 cores``.

    Args:
        hardware: of a record; an old or a foreign one may lack any part.
    """
    numbers = (hardware.get(key) for key in ("cpu_family", "cpu_model"))
    kind = "/".join(str(number) for number in numbers if _is_count(number))
    counts = (hardware.get(key) for key in ("cores", "threads"))
    cores = next((f"{count} cores" for count in counts if count and _is_count(count)), "")
    gpus = hardware.get("gpus")
    names = [hardware.get("cpu"), *(gpus if isinstance(gpus, list) else [])]
    cpu, *others = (shortened(name, 60) if isinstance(name, str) else "" for name in names)
    return ", ".join(word for word in (f"{cpu} {kind}".strip(), cores, *others) if word)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**20


def peak_gflops(hardware: Mapping[str, Any], precision: object, on_gpu: bool) -> float | None:
    """What a machine does at most in a precision, by its calibration; None if it has none.

    Args:
        hardware: of a record.
        precision: of the trainer, such as ``bf16-mixed``.
        on_gpu: whether the GPU is meant, or the processor.

    Returns:
        10^9 floating-point operations a second, in products of matrices.
    """
    measured = hardware.get("calibration")
    dtype = "bf16" if "16" in str(precision) else "fp32"
    key = f"{'gpu_' if on_gpu else ''}{dtype}_gflops"
    found = measured.get(key) if isinstance(measured, Mapping) else None
    return float(found) if found is not None and is_number(found) and found > 0 else None


def calibration_words(hardware: Mapping[str, Any]) -> str:
    """What a machine does at most, in words; empty without a calibration.

    Args:
        hardware: of a record.
    """
    measured = hardware.get("calibration")
    if not isinstance(measured, Mapping):
        return ""
    units = {"fp32_gflops": "GFLOP/s in float32", "bf16_gflops": "GFLOP/s in bfloat16"}
    units["copy_gb_s"] = "GB/s of memory"
    devices = {"": "", "gpu_": "on the GPU "}
    found = [
        f"{device}{value:,.0f} {unit}"
        for prefix, device in devices.items()
        for key, unit in units.items()
        if is_number(value := measured.get(f"{prefix}{key}"))
    ]
    return f"at most {', '.join(found)}" if found else ""


# ---- parts --------------------------------------------------------------------------------------


def _processor() -> dict[str, Any]:
    """Name, family, model and instructions of the processor, as far as the system tells them."""
    text = _PROCESSORS.read_text(encoding="utf-8") if _PROCESSORS.is_file() else ""
    first = text.partition("\n\n")[0]
    rows = (line.partition(":") for line in first.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in rows}
    found: dict[str, Any] = {
        "cpu": facts.get("model name") or platform.processor() or platform.machine()
    }
    for name, key in (("cpu_family", "cpu family"), ("cpu_model", "model")):
        if facts.get(key, "").isdecimal():
            found[name] = int(facts[key])
    flags = facts.get("flags", facts.get("Features", "")).split()
    if flags:
        found["flags"] = [name for name in _INSTRUCTIONS if name in flags]
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, OSError, ValueError):  # Windows
        return None


# ---- calibration --------------------------------------------------------------------------------


def calibration_of(parts: Mapping[str, Any], again: bool = False) -> dict[str, float]:
    """What this machine does at most, measured once a machine; empty if that is switched off.

    Args:
        parts: of the machine, see `hardware`.
        again: measure even if a calibration is kept; the better figures of both are kept, because
            other work on a machine makes a figure smaller, never larger.

    Returns:
        ``fp32_gflops`` and ``bf16_gflops`` (products of matrices, 10^9 operations a second) and
        ``copy_gb_s`` (memory, 10^9 bytes read and written a second), with all threads of PyTorch.
        With a GPU, also ``gpu_fp32_gflops`` (with TF32 only if it is on) and so on, for the first.
    """
    if os.environ.get(SWITCH, "").lower() in {"off", "0", "false"}:
        return {}
    kept = _cache_file(parts)
    known = _kept(kept)
    if known and not again:
        return known
    measured = _measure("cpu", "")
    if parts["gpus"]:
        measured |= _measure("cuda", "gpu_")
    best = {key: max(value, known.get(key, 0.0)) for key, value in measured.items()}
    with contextlib.suppress(OSError):  # measured again next time
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(kept, json.dumps(best) + "\n")
    return best


def _cache_file(parts: Mapping[str, Any]) -> Path:
    """The file for a machine with these parts, this version of PyTorch, and this name."""
    import torch  # noqa: PLC0415 - as above

    facts = json.dumps([_METHOD, parts, torch.__version__, platform.node()], sort_keys=True)
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    key = hashlib.sha256(facts.encode()).hexdigest()[:16]
    return Path(root, "cifar10-lightning", f"machine-{key}.json").expanduser()


def _kept(path: Path) -> dict[str, float]:
    try:
        content = read_json(path, _LARGEST_CACHE)
    except (OSError, ValueError):
        return {}
    known = isinstance(content, dict) and all(is_number(value) for value in content.values())
    return content if known else {}


def _measure(device: str, prefix: str) -> dict[str, float]:
    import torch  # noqa: PLC0415 - as above

    found = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[f"{prefix}{name}_gflops"] = round(_products(device, dtype), 1)
    source, target = (torch.zeros(_COPIED[device], dtype=torch.uint8, device=device) for _ in "ab")
    seconds = _fastest(partial(target.copy_, source), device)
    found[f"{prefix}copy_gb_s"] = round(2 * source.numel() / seconds / 1e9, 1)
    return found


def _products(device: str, dtype: "torch.dtype") -> float:
    """10^9 operations a second of a product of matrices, by the better of two libraries.

    On AMD's processors, the one that PyTorch asks for products of float32 reaches half of what the
    one for convolutions reaches. A convolution of single pixels is a product of matrices, too.
    """
    import torch  # noqa: PLC0415 - as above

    height, width = _SIDE[device]
    side = height * width
    ones, out = (torch.ones(side, side, dtype=dtype, device=device) for _ in "ab")
    image = ones.view(1, height, width, side).permute(0, 3, 1, 2)
    seconds = min(
        _fastest(partial(torch.mm, ones, ones, out=out), device),
        _fastest(partial(torch.conv2d, image, ones.view(side, side, 1, 1)), device),
    )
    return 2 * side**3 / seconds / 1e9


def _fastest(work: "Callable[[], torch.Tensor]", device: str) -> float:
    """The shortest time of one call in seconds, of those that the patience allows, at least two."""
    import torch  # noqa: PLC0415 - as above

    times: list[float] = []
    end = time.perf_counter() + _PATIENCE_S
    while len(times) < 2 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
