"""Watching runs in the browser, as they happen or afterwards: `run_lab.py serve`.

The server only reads run directories. It is a process of its own, so it never holds up a run.
"""
