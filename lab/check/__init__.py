"""Judge a run from its directory alone."""
