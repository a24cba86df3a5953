"""Runs ``python -m experiments.export_runs``."""

from experiments.export_runs.program import main

if __name__ == "__main__":
    main()
