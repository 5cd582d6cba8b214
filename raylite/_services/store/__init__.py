"""The node's object store."""
