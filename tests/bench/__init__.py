"""Measurements: run with `pytest tests/bench`; nothing in here asserts a time."""
