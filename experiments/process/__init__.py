"""The process that a command runs in: its signals, memory, batch system and sister processes."""
