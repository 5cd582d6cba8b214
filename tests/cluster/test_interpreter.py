"""The interpreter that `init` begins before it knows for which node, or whether for any."""

import os

import pytest

from raylite._kernel import processes
from raylite._runtime.interpreter import Interpreter, import_path
from raylite._runtime.launch import launch
from raylite._runtime.node import Channel, Ending, NodeConfig, wait_readable
from raylite.exceptions import RaySystemError
from tests.api.drivers import drive_well

pytestmark = [pytest.mark.process, pytest.mark.anew]


def test_one_that_nobody_takes_is_ended_and_reaped() -> None:
    interpreter = Interpreter(import_path())
    pidfd = processes.open_pidfd(interpreter.pid)
    interpreter.close()
    interpreter.close()
    assert processes.wait_exit(pidfd, 0)
    assert interpreter.pid not in processes.children()
    os.close(pidfd)


def test_one_whose_maker_has_gone_ends_by_itself() -> None:
    interpreter = Interpreter(import_path())
    interpreter.take().close()
    assert os.waitstatus_to_exitcode(os.waitpid(interpreter.pid, 0)[1]) == Ending.OWNER_ENDED
    interpreter.close()


def test_what_it_says_before_it_is_told_of_its_node_is_not_lost() -> None:
    interpreter = Interpreter(import_path(), "tests.no_such_module:ROLES")
    channel = Channel(interpreter.take())
    wait_readable(channel.fileno(), None)
    os.waitpid(interpreter.pid, 0)
    assert "No module named 'tests.no_such_module'" in interpreter.said()
    channel.close()
    interpreter.close()
    with pytest.raises(RaySystemError, match=r"No module named 'tests\.no_such_module'"):
        launch(NodeConfig(1, 80 << 20), "tests.no_such_module:ROLES")


def test_descriptors_of_the_program_stay_its_own() -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with launch(NodeConfig(1, 80 << 20)):
        os.close(write)
        assert os.read(read, 1) == b""  # or it would wait for a process of the node
    os.close(read)


def test_wrong_arguments_to_init_leave_no_process() -> None:
    said = drive_well(
        """
        from raylite._kernel import processes
        for wrong in ({"num_cpus": -1}, {"nonsense": 1}):
            try:
                ray.init(**wrong)
            except (ValueError, RuntimeError):
                print(processes.children())
        """
    )
    assert said.split() == ["[]", "[]"]
