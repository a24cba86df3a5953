"""Checkpoints: saved so that a run goes on exactly, loaded as data, and whose figures are whose."""
