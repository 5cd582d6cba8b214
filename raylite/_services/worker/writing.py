"""Large values on their way into the arena."""

from collections.abc import Callable

from raylite._kernel.arena import Arena
from raylite._kernel.link import Link
from raylite._protocol import raylet
from raylite._services.worker.owner import OwnerService
from raylite._wire import hot, pickling
from raylite._wire.hot import Form, Value
from raylite.exceptions import LinkError, raylet_died


class Writing:
    """Gets room in the arena from the raylet, and writes values there.

    Args:
        owner: The Owner service, which is told when a process's last value here has been written.
        raylet_link: The link to this node's raylet.
        arena: The node's shared memory.
        do: Has the loop call a function with arguments, from any thread.
    """

    def __init__(
        self,
        owner: OwnerService,
        raylet_link: Link,
        arena: Arena,
        do: Callable[..., None],
    ) -> None:
        self._owner = owner
        self._link = raylet_link
        self._objects = raylet.Objects(raylet_link)
        self._arena = arena
        self._do = do
        self._owners: dict[bytes, bytes] = {}  # of objects that have room, and are being written
        self.node: bytes = b""

    def has(self, owner: bytes) -> bool:
        """Whether a value of this owner's is being written here."""
        return owner in self._owners.values()

    async def allocate(self, id: bytes, owner: bytes, size: int) -> hot.Allocation:
        """Get room; waits for it, and raises ObjectStoreFullError in the end. For the loop.

        Unless it raises, `write` has to follow, or `discard`.
        """
        self._owners[id] = owner
        try:
            return await self._objects.allocate(hot.Allocate(id, size, owner))
        except BaseException as error:
            self._ended(id)
            if isinstance(error, LinkError) and self._link.is_ended:
                raise raylet_died(error) from error
            raise

    def write(self, id: bytes, room: hot.Allocation, pickled: pickling.Pickled) -> Value:
        """Write a value into its room, on any thread."""
        try:
            self._arena.write(room.offset, pickled.layout())
        finally:
            self._do(self._ended, id)
        return Value(Form.ARENA, b"", room.offset, pickled.size, (), b"", self.node)

    def discard(self, id: bytes) -> None:
        """Give back the room that an object has, or gets: its writer was interrupted."""
        self._do(self._ended, id)
        self._do(self._owner.free_value, id, Value(Form.ARENA))

    def _ended(self, id: bytes) -> None:
        owner = self._owners.pop(id, None)
        if owner is not None and not self.has(owner):
            self._owner.on_viewless()
