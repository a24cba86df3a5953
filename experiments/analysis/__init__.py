"""Compares runs: groups them over seeds, tests differences, writes plots, tables and pages."""
