"""Judging what happened, from a run directory alone."""
