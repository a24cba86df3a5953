"""The report's claims: what is run for each, how it is judged, and the page that tells it."""
