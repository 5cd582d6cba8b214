"""What Ray keeps under ``ray.util``."""
