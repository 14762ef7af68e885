"""The lab: runs the chat cluster, injects faults, judges the result and shows it."""

__version__ = "0.1.0"
