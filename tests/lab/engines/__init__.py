"""Tests of the adapter and the drivers of other engines."""
