"""What watches a command and tells of it: callbacks, loggers, the progress bar, the summary."""
