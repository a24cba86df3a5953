"""SLURM: a job that is told to go saves its state and asks to be run again.

``sbatch --signal=USR1@120`` sends SIGUSR1 two minutes before a job's time is over, and where
preemption is configured so, before another job takes its place. Lightning's own answer writes a
checkpoint between two of its hooks, of a name of its own, from which a run does not go on exactly;
this project's is the one for SIGTERM (see `experiments.session.stopping`), and a request to SLURM.
"""

import os
import subprocess

_PATIENCE_S = 60


def requeue() -> str:
    """Asks SLURM to run this job again.

    Returns:
        What came of it, in words; empty outside of a job of SLURM.
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
