"""Tests; the directories mirror the packages."""

TOO_LONG_S = 120.0
"""A test that hangs fails after this many seconds. No test measures by it: a busy machine may be that slow."""
