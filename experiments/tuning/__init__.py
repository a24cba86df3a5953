"""Finds settings on validation: sweeps, learning rates, batch sizes."""
