"""What shall happen: scenarios, faults and load, as plain data. Pure."""
