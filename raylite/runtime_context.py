"""`get_runtime_context()`: where the calling code runs."""

from raylite._runtime import auto
from raylite._runtime.context import Place
from raylite._types.ids import JobID, NodeID, TaskID, WorkerID


class RuntimeContext:
    """Ids and names of the calling code's job, node, worker and task, as strings of hexadecimal."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def get_job_id(self) -> str:
        """Return the id of the job this code belongs to."""
        task = self._place.task
        return JobID(task.job if task is not None else self._place.core.job).hex()

    def get_node_id(self) -> str:
        """Return the id of the node this code runs on."""
        return NodeID(self._place.node_id).hex()

    def get_worker_id(self) -> str:
        """Return the id of this process (or thread, with ``workers="threads"``)."""
        return WorkerID(self._place.core.id).hex()

    def get_task_id(self) -> str | None:
        """Return the id of the task being run; None in a driver."""
        task = self._place.task
        return TaskID(task.id).hex() if task is not None else None

    def get_task_name(self) -> str | None:
        """Return the name of the task being run: its option ``name``, else its function's."""
        task = self._place.task
        return task.name if task is not None else None

    def get_task_function_name(self) -> str | None:
        """Return the qualified name of the function being run."""
        task = self._place.task
        return task.function if task is not None else None

    def get_actor_id(self) -> str | None:
        """Return the id of the actor whose method is being run; None outside of actors."""
        return None

    @property
    def namespace(self) -> str:
        """The namespace of the job."""
        return self._place.namespace

    @property
    def gcs_address(self) -> str:
        """Where this cluster's tables are served."""
        return self._place.gcs_address

    def get_session_name(self) -> str:
        """Return the name of the session's directory."""
        return self._place.session_dir.rsplit("/", 1)[-1]


def get_runtime_context() -> RuntimeContext:
    """Return where the calling code runs; starts a cluster if there is none.

    Example:
        >>> get_runtime_context().get_task_id() is None  # doctest: +SKIP
        True
    """
    return RuntimeContext(auto.place())
