"""Tests on the real kernel: they need root, and are skipped where something is missing."""
