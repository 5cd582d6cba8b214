"""The cluster's tables."""
