"""Several processes that share one training: none is left behind, and a lost one is named."""

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

PARENT_VARIABLE = "CIFAR10_LIGHTNING_PARENT"  # tells the other processes of a run the first one's
_COMMUNICATION_ERROR = re.compile("gloo|NCCL|EADDRINUSE|TCPStore|timed out", re.IGNORECASE)
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def die_with_parent() -> None:
    """Has Linux end this process when the one that started it as its helper has ended.

    Lightning starts the second and further processes of a machine itself. Where the first one
    dies before they have met, they would wait for it for half an hour.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if sys.platform != "linux" or parent is None or os.environ.get("LOCAL_RANK", "0") == "0":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)  # without a word: that one has said why it ended


class LostProcessError(RunError):
    """Another process of the run has ended, or cannot be reached."""


@contextlib.contextmanager
def other_processes(trainer: Trainer) -> Iterator[None]:
    """Says in a line that another process is gone, instead of what gloo and NCCL say.

    Args:
        trainer: with several processes, or one, whose errors are left as they are.

    Raises:
        LostProcessError: if that is what happened.
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
    # Of gloo's message: without the place in its source, and what follows the first sentence.
    reason = re.sub(r"\[/[^\]]*\]:? ?|\. .*", "", str(error).splitlines()[0])
    if "connectFullMesh" in reason:
        return (
            "the processes cannot reach each other: on several machines, set GLOO_SOCKET_IFNAME to "
            f"the network interface between them ({reason})"
        )
    return f"another process of the run ended, or cannot be reached: {reason}"
