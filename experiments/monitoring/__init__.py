"""Observes a command and reports on it: callbacks, loggers, progress bar, summary."""
