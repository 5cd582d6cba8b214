"""raylite: Ray Core in Python, every component an asyncio service.

``import raylite as ray`` runs a Ray Core program. See ``docs/`` for a quickstart and the design.
"""

from raylite import aio as aio, dag as dag, exceptions as exceptions, util as util
from raylite._api import (
    available_resources as available_resources,
    cancel as cancel,
    cluster_resources as cluster_resources,
    get as get,
    nodes as nodes,
    put as put,
    remote as remote,
    wait as wait,
)
from raylite._connect import RayContext as RayContext
from raylite._init import init as init, is_initialized as is_initialized, shutdown as shutdown
from raylite._services.worker.dynamic import (
    DynamicObjectRefGenerator as DynamicObjectRefGenerator,
)
from raylite._services.worker.generator import ObjectRefGenerator as ObjectRefGenerator
from raylite._services.worker.objects import ObjectRef as ObjectRef
from raylite._types.ids import (
    ActorClassID as ActorClassID,
    ActorID as ActorID,
    ClusterID as ClusterID,
    FunctionID as FunctionID,
    JobID as JobID,
    NodeID as NodeID,
    ObjectID as ObjectID,
    PlacementGroupID as PlacementGroupID,
    TaskID as TaskID,
    UniqueID as UniqueID,
    WorkerID as WorkerID,
)
from raylite._version import __version__ as __version__
from raylite.runtime_context import (
    get_gpu_ids as get_gpu_ids,
    get_runtime_context as get_runtime_context,
)
