"""Several processes of one training: none outlives the others, and a lost one is named."""

import contextlib
import ctypes
import os
import re
import signal
import sys
from collections.abc import Iterator

from pytorch_lightning import Trainer
from torch.distributed import DistError

from experiments.errors import RunError

PARENT_VARIABLE = "CIFAR10_LIGHTNING_PARENT"  # passes the id of the first process to the others
_COMMUNICATION_ERROR = re.compile("gloo|NCCL|EADDRINUSE|TCPStore|timed out", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def die_with_parent() -> None:
    """Makes Linux end this process when the process that started it has ended.

    Lightning starts the second and further processes of a machine. If the first one dies before
    they are connected, they would wait for it for half an hour.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if sys.platform != "linux" or parent is None or os.environ.get("LOCAL_RANK", "0") == "0":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # without a message: the first process has printed the reason


class LostProcessError(RunError):
    """Another process of the run has ended or cannot be reached."""


@contextlib.contextmanager
def other_processes(trainer: Trainer) -> Iterator[None]:
    """Replaces errors of gloo and NCCL by one line on the lost process.

    Args:
        trainer: the trainer; with one process, errors stay unchanged.

    Raises:
        LostProcessError: if another process is lost.
    """
    try:
        yield
    except RuntimeError as error:
        of_processes = isinstance(error, DistError) or _COMMUNICATION_ERROR.search(str(error))
        if trainer.world_size == 1 or not of_processes or isinstance(error, RunError):
            raise
        raise LostProcessError(_reason(error)) from error


def _reason(error: Exception) -> str:
    if "EADDRINUSE" in str(error):
        port = os.environ.get("MASTER_PORT")
        return f"port {port} is taken: leave MASTER_PORT out, or set it to a free port"
    # Removed from gloo's message: the source location, and the text after the first sentence.
    reason = re.sub(r"\[/[^\]]*\]:? ?|\. .*", "", str(error).splitlines()[0])
    if "connectFullMesh" in reason:
        return (
            "the processes cannot reach each other: on several machines, set GLOO_SOCKET_IFNAME to "
            f"the network interface between them ({reason})"
        )
    return f"another process of the run ended, or cannot be reached: {reason}"
