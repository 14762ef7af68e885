"""What exists only to run the chat, hurt it, judge it and show it."""

__version__ = "0.1.0"
