"""One command on one run: check it, open the run, execute it, close the run."""
