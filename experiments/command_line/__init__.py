"""The command line: parsed, its files and flags checked, its errors told in one line."""
