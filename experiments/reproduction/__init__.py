"""The report's claims: their runs, their tests and the page of verdicts."""
