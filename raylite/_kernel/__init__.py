"""The framework: interfaces, services, links, networks and hosts. It knows nothing of Ray."""
