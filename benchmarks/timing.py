"""Times calls side by side in one process: medians of interleaved rounds."""

import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch

BATCH_S = 2e-3  # a time is that of a batch of calls of at least this length
_TUNABLES = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"


def timer(device: str) -> Callable[[Callable[[], object], int], float]:
    """Returns a function that times a number of calls, in seconds for each call."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def seconds(call: Callable[[], object], count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            call()
        wait()
        return (time.perf_counter() - start) / count

    return seconds


def measure(
    measured: Sequence[tuple[str, str, Callable[[], object]]], device: str, rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Times calls in turn, in another order each round.

    Args:
        measured: pass, implementation, and a call without arguments.
        device: ``cpu`` or ``cuda``.
        rounds: number of rounds.

    Returns:
        For each pass and implementation the median ``us`` of a call, and the median ``ratio`` of
        the time of ``native`` to its time.
    """
    clock = timer(device)
    counts = []
    for _, _, call in measured:
        clock(call, 3)  # compiles, fills caches
        counts.append(max(1, int(BATCH_S / clock(call, 3))))
    times: list[list[float]] = [[] for _ in measured]
    for _ in range(rounds):
        for i in random.sample(range(len(measured)), len(measured)):
            times[i].append(clock(measured[i][2], counts[i]))
    native = {kind: times[i] for i, (kind, name, _) in enumerate(measured) if name == "native"}
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (kind, name, _), own in zip(measured, times, strict=True):
        ratios = [a / b for a, b in zip(native[kind], own, strict=True)]
        figures = {"us": 1e6 * statistics.median(own), "ratio": statistics.median(ratios)}
        result.setdefault(kind, {})[name] = {key: round(value, 3) for key, value in figures.items()}
    return result


def without_trimming(module: str) -> None:
    """Starts this process again with an allocator that keeps its memory.

    glibc returns large blocks of memory to the system and gets them back page by page, which takes
    longer than what is measured.

    Args:
        module: the program, for ``python -m``.
    """
    if sys.platform == "linux" and _TUNABLES not in os.environ.get("GLIBC_TUNABLES", ""):
        os.environ["GLIBC_TUNABLES"] = _TUNABLES
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])
