"""What a worker process sets in its environment for the lease of its tasks."""

from raylite._runtime.variables import Variables
from raylite._wire.hot import Holding

CPU = 10_000


def gpus(*numbers: int, share: int = 10_000) -> Holding:
    devices = (("GPU", tuple((number, share) for number in numbers)),)
    return Holding({"CPU": CPU, "GPU": share * len(numbers)}, devices)


def test_libraries_may_use_as_many_threads_as_the_task_has_cpus() -> None:
    environment: dict[str, str] = {}
    variables = Variables(environment)
    for units, threads in ((CPU, "1"), (26_000, "2"), (4 * CPU, "4"), (5_000, "1"), (0, "1")):
        variables.hold(Holding({"CPU": units} if units else {}))
        assert environment == {"OMP_NUM_THREADS": threads}


def test_the_users_own_number_of_threads_stays() -> None:
    environment: dict[str, str] = {}
    variables = Variables(environment)
    variables.adopt({"OMP_NUM_THREADS": "7"})
    for _ in range(2):
        variables.hold(Holding({"CPU": 2 * CPU}))
        assert environment == {"OMP_NUM_THREADS": "7"}


def test_what_a_task_makes_of_it_ends_with_the_lease() -> None:
    environment: dict[str, str] = {}
    variables = Variables(environment)
    variables.hold(gpus(1))
    environment["OMP_NUM_THREADS"] = "64"
    del environment["CUDA_VISIBLE_DEVICES"]
    variables.hold(Holding({"CPU": CPU}))
    assert environment == {"OMP_NUM_THREADS": "1"}


def test_only_the_gpus_of_the_lease_are_visible() -> None:
    environment = {"OMP_NUM_THREADS": "1"}
    variables = Variables(environment)
    variables.hold(gpus(2, 0))
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,2"
    variables.hold(Holding({"CPU": CPU}))
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_gpus_have_the_names_that_the_node_was_started_with() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "3,5,7"}
    variables = Variables(environment)
    variables.hold(gpus(0, 2))
    assert environment["CUDA_VISIBLE_DEVICES"] == "3,7"
    assert variables.before("CUDA_VISIBLE_DEVICES") == "3,5,7"
    variables.hold(gpus(1))
    assert environment["CUDA_VISIBLE_DEVICES"] == "5"
    variables.hold(Holding({"CPU": CPU}))
    assert environment["CUDA_VISIBLE_DEVICES"] == "3,5,7"
    variables.adopt({"CUDA_VISIBLE_DEVICES": "9"})  # fewer than the node has: all of those
    variables.hold(gpus(1))
    assert environment["CUDA_VISIBLE_DEVICES"] == "9"


def test_a_task_without_gpus_sees_none_only_if_the_user_says_so() -> None:
    environment = {"CUDA_VISIBLE_DEVICES": "0,1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
    variables = Variables(environment)
    variables.hold(Holding({"CPU": CPU}))
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    del environment["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"]
    variables.hold(Holding({"CPU": CPU}))
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_the_user_may_keep_the_variable_alone() -> None:
    environment = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}
    variables = Variables(environment)
    variables.hold(gpus(1))
    assert "CUDA_VISIBLE_DEVICES" not in environment


def test_other_accelerators_have_variables_of_their_own() -> None:
    environment: dict[str, str] = {}
    Variables(environment).hold(Holding({"TPU": 10_000}, (("TPU", ((1, 10_000),)),)))
    assert environment == {"OMP_NUM_THREADS": "1", "TPU_VISIBLE_CHIPS": "1"}
