"""What a worker's process runs after its fork."""

import os
import sys
from contextlib import suppress
from functools import partial

from raylite._kernel import processes
from raylite._kernel.threads import LoopThread
from raylite._runtime import context, networks
from raylite._runtime.attach import Attachment, attach_worker
from raylite._runtime.networks import NetworkOf
from raylite._runtime.node import Inherited
from raylite._runtime.pipes import MARK
from raylite._runtime.striker import Striker
from raylite._runtime.variables import Variables
from raylite._services.worker.coroutines import AsyncRunner
from raylite._services.worker.execute import QueueExecutor
from raylite._types import board
from raylite._types.text import one_line
from raylite._wire import hot

IDLE = "raylite::IDLE"


def worker(inherited: Inherited, network_of: NetworkOf = networks.network_of) -> None:
    """Run tasks on this thread, the process's main one, until told to leave."""
    assert inherited.token is not None
    sys.setswitchinterval(0.001)
    thread = LoopThread("raylite-core")
    executor = QueueExecutor(thread.loop)
    attachment = thread.run(_attach(inherited, inherited.token, executor, network_of))
    core = attachment.core
    arena = inherited.arena
    slot = arena.slot(board.slot_offset(arena.capacity, inherited.token), board.SLOT)

    def note(task: bytes) -> None:
        slot[:24] = task

    pid = os.getpid()

    def leave(code: int) -> None:
        if os.getpid() == pid:
            thread.run(_say_goodbye(attachment, executor))
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):  # user code closed or removed it
                stream.flush()

    def forked() -> None:
        """A child that a task forked goes on with the task's code, and ends where that ends."""
        executor.take_back()
        executor.leave()

    os.register_at_fork(after_in_child=forked)

    def begin(job: hot.JobConfig) -> None:
        """Be what the job wants of its workers, before its first task."""
        place.namespace = job.namespace
        variables.adopt(job.env_vars)
        sys.path.extend(each for each in map(os.fsdecode, job.sys_path) if each not in sys.path)

    teller, variables = _Teller(), Variables(os.environ)
    ip = inherited.config.ip
    runner = AsyncRunner(
        executor, core, note, teller.tell, leave, ip, teller.idle, begin, variables.hold
    )  # fmt: skip
    place = context.Place(core, attachment.node_id, runner)
    place.session_dir = inherited.config.session_dir
    place.labels = inherited.config.labels
    place.gcs_address = attachment.gcs_address
    place.cluster = inherited.config.cluster or attachment.gcs_address
    place.ip = ip
    place.variable = variables.before
    context.enter(place)
    executor.strike = Striker(thread.loop, runner.strikes).strike
    executor.die = partial(os._exit, 1)
    core.raylet_link.on_end(lambda link: os._exit(1))
    try:
        runner.run()
        leave(0)
    finally:
        slot.release()


async def _attach(
    inherited: Inherited, token: int, executor: QueueExecutor, network_of: NetworkOf
) -> Attachment:
    config = inherited.config
    network = network_of(config)
    id = network.seams.random("worker").randbytes(28)
    path = f"{config.sockets}/w{id.hex()[:16]}.sock"
    await networks.listen(network, config, path, ports=config.worker_ports)
    return await attach_worker(
        network,
        f"unix:{config.raylet_address}",
        inherited.arena,
        id,
        token,
        executor,
        config.num_cpus,
    )


async def _say_goodbye(attachment: Attachment, executor: QueueExecutor) -> None:
    """Send what has been worked out; the raylet learns of the end by the exit itself."""
    executor.flush()
    await attachment.core.flush()


class _Teller:
    """Shows what is being run: in the process's title, and to whoever reads its output."""

    def __init__(self) -> None:
        self._shown = self._marked = ""

    def idle(self) -> None:
        """Nothing is being run."""
        self._shown = ""
        processes.set_title(IDLE)

    def tell(self, name: str) -> None:
        _reopen_streams()
        if name != self._shown:
            self._shown = name
            processes.set_title(f"raylite::{name}")
        if name != self._marked:
            self._marked = name
            mark = MARK + one_line(name).encode() + b"\n"
            for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
                try:
                    stream.flush()
                    os.write(fd, mark)
                except (AttributeError, OSError, ValueError):
                    pass  # user code closed or removed it


def _reopen_streams() -> None:
    """Give the next task the streams that one before it has closed; the descriptors are still there.

    Ray: such a worker dies at the next line that is printed, and another runs that task again.
    """
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(getattr(sys, name), "closed", False):
            with suppress(OSError):  # the task has closed the descriptor, too
                own = open(fd, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
                setattr(sys, name, own)
