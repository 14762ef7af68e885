"""What the live and the simulated world share."""
