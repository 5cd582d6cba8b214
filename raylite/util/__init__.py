"""What Ray keeps under ``ray.util``."""

from raylite.util import scheduling_strategies as scheduling_strategies
