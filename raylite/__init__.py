"""raylite: Ray Core in Python, every component an asyncio service.

``import raylite as ray`` runs a Ray Core program. See ``docs/`` for a quickstart and the design.

A name's module is loaded when the name is first used (as in SPEC 1 of scientific Python), so that
importing raylite costs next to nothing and `init` loads the most while the node is starting.
``__init__.pyi`` says the same to type checkers; a test holds the two equal.
"""

from importlib import import_module as _import_module

_HOMES = {
    "raylite._api": (
        "available_resources", "cancel", "cluster_resources", "get", "nodes", "put", "remote", "wait",
    ),
    "raylite._connect": ("RayContext",),
    "raylite._init": ("init", "is_initialized", "shutdown"),
    "raylite._services.worker.dynamic": ("DynamicObjectRefGenerator",),
    "raylite._services.worker.generator": ("ObjectRefGenerator",),
    "raylite._services.worker.objects": ("ObjectRef",),
    "raylite._types.ids": (
        "ActorClassID", "ActorID", "ClusterID", "FunctionID", "JobID", "NodeID", "ObjectID",
        "PlacementGroupID", "TaskID", "UniqueID", "WorkerID",
    ),
    "raylite._version": ("__version__",),
    "raylite.runtime_context": ("get_gpu_ids", "get_runtime_context"),
}  # fmt: skip
_HOME = {name: module for module, names in _HOMES.items() for name in names}

#: What Ray has and raylite does not, by name, with what it belongs to.
_MISSING = {
    **dict.fromkeys(("actor", "get_actor", "kill", "method"), "actors"),
    **dict.fromkeys(
        ("data", "llm", "rllib", "serve", "train", "tune", "workflow"), "Ray's libraries"
    ),
    **dict.fromkeys(
        ("cpp_function", "cross_language", "java_actor_class", "java_function", "Language"),
        "tasks in other languages",
    ),
    **dict.fromkeys(("client", "ClientBuilder"), "Ray Client"),
    **dict.fromkeys(("autoscaler", "internal", "LoggingConfig", "timeline"), "this part of Ray"),
}

__all__ = sorted([*_HOME, "aio", "dag", "exceptions", "util"])


def __getattr__(name: str) -> object:
    if name in _HOME:
        value: object = getattr(_import_module(_HOME[name]), name)
    elif name in (
        "aio",
        "cluster_utils",
        "dag",
        "exceptions",
        "runtime_context",
        "testing",
        "util",
    ):
        value = _import_module(f"raylite.{name}")
    elif name in _MISSING:
        raise AttributeError(
            f"raylite has no {name!r}: this version is without {_MISSING[name]}, see the limits in its "
            "README"
        )
    else:
        raise AttributeError(f"module 'raylite' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
