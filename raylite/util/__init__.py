"""What Ray keeps under ``ray.util``, and what else is not needed by every program."""

from raylite.util import scheduling_strategies as scheduling_strategies
from raylite.util.executor import Executor as Executor
from raylite.util.explaining import Explanation as Explanation, explain as explain
