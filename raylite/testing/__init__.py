"""Testing with raylite: simulation, and clusters embedded in a test."""
