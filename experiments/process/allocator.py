"""Keeps the memory that a training step frees in the process, for the next step."""

import ctypes
import os

_MAX_INT = 2**31 - 1
# Parameters of mallopt(3) in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 64 * 2**20  # bytes by which the heap grows at least


def keep_freed_memory() -> bool:
    """Makes glibc's malloc keep freed memory instead of requesting it again in every step.

    By default, glibc maps each large block and unmaps it when it is freed. Every step of a CNN then
    touches hundreds of megabytes of new pages, each with a page fault; this took an eighth of
    FastCNN's time on a CPU. The function does nothing if an environment variable ``MALLOC_...`` or
    ``GLIBC_TUNABLES`` is set, or with another C library or allocator.

    Returns:
        Whether malloc was changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _MAX_INT, _M_TOP_PAD: _TOP_PAD}
    return all(mallopt(key, value) == 1 for key, value in settings.items())
