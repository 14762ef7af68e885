"""Search for failures in simulations: random scenarios, shrinking, coverage, and exploration within bounds."""
