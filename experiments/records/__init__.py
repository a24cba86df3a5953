"""The files of a run: written by this project, and read safely whoever wrote them."""
