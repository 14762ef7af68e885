"""Mutants: the product with one protocol rule broken on purpose, to test the checks."""
