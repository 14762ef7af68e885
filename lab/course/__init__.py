"""The course of a run, the same on real processes and in virtual time."""
