"""Making it happen: real processes, real sockets, real load; the outcome is a run directory."""
