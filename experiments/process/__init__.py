"""The process of a command: its signals, memory, batch system and sister processes."""
