"""Values: ids, resources, specs, addresses. Frozen, hashable, and never waiting."""
