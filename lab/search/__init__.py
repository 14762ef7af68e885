"""Looking for seeds that hurt: what a simulated run has reached, and what none has."""
