"""The kernel's network of a live run, where links drop packets: namespaces, addresses, packet filter. Linux only."""
