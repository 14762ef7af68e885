"""Campaigns: searches of any length, spread over the workers of a Dask cluster, with their state in one SQLite file."""
