"""A node: its leases, its worker processes, what they print."""
