"""What is written of a run, and the one reader of it, whoever wrote it."""
