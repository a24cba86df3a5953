"""Freed memory stays with the process."""

import os
import platform
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

FAULTS = """
import gc, resource, threading, torch
gc.disable()  # as cli.py does
import experiments.command_line.interface  # the heap as a run finds it
from experiments.process.allocator import keep_freed_memory
told = keep_freed_memory()
def step():
    torch.ones(25_000_000)  # 100 MB
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()  # the heap grows
thread = threading.Thread(target=step)
thread.start()
thread.join()
print(told, min(faults() for _ in range(3)))
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")


@pytest.mark.slow
@glibc
def test_large_blocks_are_not_mapped_anew() -> None:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_PR"))}
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.check_output(command, cwd=PROJECT, env=kept, text=True)
    told, faults = printed.split()
    assert told == "True"
    assert int(faults) < 60_000  # 10 blocks have 244,000 pages; the heap may grow once more


@glibc
def test_settings_of_the_environment_stay() -> None:
    code = "from experiments.process.allocator import keep_freed_memory; print(keep_freed_memory())"
    env = {**os.environ, "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", code]
    told = subprocess.check_output(command, cwd=PROJECT, env=env, text=True)
    assert told.strip() == "False"
