"""Scenarios: their format, their checks, and the plan of a load. Pure."""
