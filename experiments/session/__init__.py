"""One command on one run: prepared, opened, run and closed."""
