"""The selftest: shows for each mutant whether the checks notice the broken rule."""
