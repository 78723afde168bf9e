"""Measurements beside limits and rivals: `python -m benchmarks`."""
