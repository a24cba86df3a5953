"""Reads runs: those of this project, and those that other tools wrote."""
