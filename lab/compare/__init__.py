"""Comparisons of two runs, two measurements, or two versions of the project."""
