"""Dependencies: a task one of whose arguments has failed fails with it, and asks for no worker."""

from collections import deque
from collections.abc import Callable

from raylite._services.worker.owned import OwnedTask
from raylite._wire.hot import Form, Value
from raylite._wire.stories import dependent


class Dependents:
    """The tasks that are about to fail with their arguments.

    They fail one after another, not each inside the one before: chains of them may be long.

    Args:
        fail: Lets a task end with an error.
        title: Returns the name of a task's function.
    """

    def __init__(
        self, fail: Callable[[OwnedTask, Value], None], title: Callable[[OwnedTask], str]
    ) -> None:
        self._fail = fail
        self._title = title
        self._doomed: deque[tuple[OwnedTask, Value]] = deque()
        self._is_busy = False

    def doom(self, task: OwnedTask) -> bool:
        """Fail a task if an argument of it has failed; say whether that is so.

        An error that cannot be told without unpickling a class of the program's is left to a worker.
        """
        for _, entry in task.inputs:
            value = entry.value
            if value is not None and value.form == Form.ERROR:
                title = self._title(task)
                error = dependent(value.data, title, f"raylite::{task.name or title}")
                if error is not None:
                    self._doomed.append((task, Value(Form.ERROR, error)))
                    self._work_off()
                    return True
        return False

    def _work_off(self) -> None:
        if self._is_busy:
            return  # somebody further up does
        self._is_busy = True
        try:
            while self._doomed:
                self._fail(*self._doomed.popleft())
        finally:
            self._is_busy = False
