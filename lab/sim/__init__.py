"""The simulated world: the product's core, storage and clients in virtual time, determined by one seed."""
