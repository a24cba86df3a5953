"""SLURM: before its end, a job saves its state and requests another run.

``sbatch --signal=USR1@120`` sends SIGUSR1 two minutes before a job's time limit and, if preemption
is configured for it, before another job replaces this one. Lightning's own handler writes a
checkpoint between two hooks, from which a run does not resume exactly. This project stops as for
SIGTERM (see `experiments.session.stopping`) and then requests another run.
"""

import os
import subprocess

_PATIENCE_S = 60


def requeue() -> str:
    """Asks SLURM to run this job again.

    Returns:
        The result, in words; empty outside a SLURM job.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return ""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    command = ["scontrol", "requeue", job]
    try:
        subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE_S,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split()) or f"status {error.returncode}"
        return f"SLURM does not run job {job} again ({' '.join(command)}: {reason})"
    except (OSError, subprocess.SubprocessError) as error:
        return f"SLURM does not run job {job} again: {error}"
    return f"SLURM runs job {job} again"
