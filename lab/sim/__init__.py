"""The simulated world: the product's own core, storage and clients, in virtual time, from one seed."""
