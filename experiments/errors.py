"""Errors that tell the user what to do."""


class RunError(RuntimeError):
    """A run or its files can't be used as asked; the message names the remedy."""
