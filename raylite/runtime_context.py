"""`get_runtime_context()`: where the calling code runs."""

import time
import warnings
from typing import Any

from raylite._runtime import auto
from raylite._runtime.context import Place
from raylite._types.accelerators import VISIBLE, identities
from raylite._types.ids import JobID, NodeID, TaskID, WorkerID
from raylite._types.resources import Resources
from raylite._types.strategies import NODE_ID_LABEL


class RuntimeContext:
    """Ids and names of the calling code's job, node, worker and task, as strings of hexadecimal."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def get_job_id(self) -> str:
        """Return the id of the job this code belongs to."""
        task = self._place.task
        return JobID(task.job if task is not None else self._place.core.job).hex()

    @property
    def job_id(self) -> JobID:
        """The id of the job, as an object. Deprecated: `get_job_id` returns it as text."""
        _warn("job_id", "get_job_id")
        return JobID.from_hex(self.get_job_id())

    @property
    def node_id(self) -> NodeID:
        """The id of the node, as an object. Deprecated: `get_node_id` returns it as text."""
        _warn("node_id", "get_node_id")
        return NodeID(self._place.node_id)

    @property
    def task_id(self) -> TaskID | None:
        """The id of the task, as an object. Deprecated: `get_task_id` returns it as text.

        Ray: refuses it in a driver.
        """
        _warn("task_id", "get_task_id")
        task = self._place.task
        return TaskID(task.id) if task is not None else None

    @property
    def actor_id(self) -> None:
        """The id of the actor; None outside of actors. Deprecated: `get_actor_id` returns it."""
        _warn("actor_id", "get_actor_id")

    def get(self) -> dict[str, Any]:
        """Return the ids of job, node and task, and the namespace. Deprecated.

        What there is not, such as the task's in a driver, is left out.
        """
        _warn("get()", "get_job_id, get_node_id, get_task_id and namespace")
        known: dict[str, Any] = {
            "job_id": JobID.from_hex(self.get_job_id()),
            "node_id": NodeID(self._place.node_id),
            "namespace": self.namespace,
        }
        if self._place.task is not None:
            known["task_id"] = TaskID(self._place.task.id)
        return known

    def get_node_id(self) -> str:
        """Return the id of the node this code runs on."""
        return NodeID(self._place.node_id).hex()

    def get_worker_id(self) -> str:
        """Return the id of this process (or thread, with ``workers="threads"``)."""
        return WorkerID(self._place.core.id).hex()

    def get_node_labels(self) -> dict[str, str]:
        """Return the labels of the node this code runs on, ``ray.io/node-id`` among them."""
        return {**self._place.labels, NODE_ID_LABEL: self.get_node_id()}

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

    def get_time_left(self) -> float | None:
        """Return the seconds until the task being run is to have ended; None if it has all the time.

        That is its option ``timeout`` or ``deadline``, or what is left to the task that started it.
        Negative when the time is over, and the interrupt is on its way.
        """
        task = self._place.task
        if task is None or task.deadline is None:
            return None
        return task.deadline - time.monotonic()

    def get_actor_id(self) -> str | None:
        """Return the id of the actor whose method is being run; None outside of actors."""
        return None

    def get_actor_name(self) -> str | None:
        """Return the name of the actor whose method is being run; None outside of actors."""
        return None

    def get_placement_group_id(self) -> str | None:
        """Return the id of the placement group this code runs in; None outside of any."""
        return None

    def get_assigned_resources(self) -> dict[str, float]:
        """Return how much the task has of each resource; memory in bytes.

        Raises:
            AssertionError: This is a driver.
        """
        holding = self._place.holding
        if holding is None:
            raise AssertionError(
                "This method is only available when the process is a worker. "
                "Current mode: 0"  # Ray's number for a driver
            )
        return Resources.from_units(holding.demand).to_floats()

    def get_accelerator_ids(self) -> dict[str, list[str]]:
        """Return which accelerators the task has, by resource: ``{"GPU": ["0", "1"], ...}``."""
        return {name: [str(id) for id in device_ids(self._place, name)] for name in VISIBLE}

    def get_resource_ids(self) -> dict[str, list[str]]:
        """Return what `get_accelerator_ids` returns. Deprecated."""
        _warn("get_resource_ids", "get_accelerator_ids")
        return self.get_accelerator_ids()

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

    def get_temp_dir(self) -> str:
        """Return the directory in which this node makes its sessions' directories."""
        return self._place.session_dir.rpartition("/")[0]


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"RuntimeContext.{old} is deprecated: use {new} instead", DeprecationWarning, stacklevel=3
    )


def device_ids(place: Place, resource: str) -> list[int] | list[str]:
    """Return which devices of a resource the code at a place has."""
    holding = place.holding
    shares = dict(holding.devices).get(resource, ()) if holding is not None else ()
    if not shares:
        return []
    return identities((device for device, _ in shares), place.variable(VISIBLE[resource]))


def get_gpu_ids() -> list[int] | list[str]:
    """Return which GPUs the task has; none in a driver.

    They are numbers from 0 on, or what the node's ``CUDA_VISIBLE_DEVICES`` calls them if it is set.
    Two tasks that share a GPU have the same one. ``CUDA_VISIBLE_DEVICES`` is set to them while the
    task runs, so that most libraries see no others and count theirs from 0.

    Example:
        >>> @ray.remote(num_gpus=2)  # doctest: +SKIP
        ... def train():
        ...     return get_gpu_ids()
    """
    return device_ids(auto.place(), "GPU")


def get_runtime_context() -> RuntimeContext:
    """Return where the calling code runs; starts a cluster if there is none.

    Example:
        >>> get_runtime_context().get_task_id() is None  # doctest: +SKIP
        True
    """
    return RuntimeContext(auto.place())
