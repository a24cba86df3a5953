"""The command line: parses arguments, checks config files, reports errors in one line."""
