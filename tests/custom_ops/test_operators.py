"""The search for kernels: once for each type of device, however many threads ask."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from custom_ops.operators import Kernels


def test_threads_wait_for_a_search() -> None:
    asked, searching, go_on = [], threading.Event(), threading.Event()

    def search(device_type: str) -> bool:
        asked.append(device_type)
        searching.set()
        assert go_on.wait(60)
        return True

    kernels = Kernels(search)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kernels.load, "cpu")
        assert searching.wait(60)
        second = pool.submit(kernels.load, "cpu")
        with pytest.raises(TimeoutError):
            second.result(timeout=0.1)
        go_on.set()
        assert first.result()
    assert asked == ["cpu"]
    assert kernels.found_for("cpu")


def test_a_search_that_fails_is_not_repeated() -> None:
    def search(device_type: str) -> bool:
        raise RuntimeWarning(device_type)

    kernels = Kernels(search)
    with pytest.raises(RuntimeWarning, match="cpu"):
        kernels.load("cpu")
    assert not kernels.load("cpu")
    assert not kernels.found_for("cpu")
