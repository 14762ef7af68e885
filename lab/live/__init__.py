"""The live world: real processes, real sockets and real load."""
