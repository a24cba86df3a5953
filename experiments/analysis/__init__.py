"""Runs compared: grouped over seeds, tested, drawn, and written as tables and pages."""
