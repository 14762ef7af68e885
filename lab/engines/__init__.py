"""Other people's replicated stores as nodes of the lab: an adapter process for each node, and one driver an engine."""
