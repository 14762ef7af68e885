"""Does the lab find what it is there for? The product with one rule broken at a time."""
