"""Checkpoints: exact saving, safe loading, and the evaluations that belong to them."""
