"""Writes runs for other tools, with their own libraries: ``python -m experiments.export_runs``."""
