"""A web service on the cluster of this machine: its handlers await tasks, so many are in flight at once.

`raylite start --head`, then `uvicorn service:app` in this folder; or see both at work with
`python examples/service_in_use.py`. It needs `raylite[examples]`.
"""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import raylite as ray
from raylite import aio

in_flight = set[Request]()


@ray.remote
def count_primes(below: int) -> int:
    sieve = bytearray([0, 0]) + bytearray([1]) * (below - 2)
    for n in range(2, int(below**0.5) + 1):
        sieve[n * n :: n] = bytes(len(range(n * n, below, n)))
    return sum(sieve)


async def primes(request: Request) -> Response:
    """Answer when the task has, and wait for it no longer than the client does."""
    in_flight.add(request)
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(leave_with_client, request, group.cancel_scope)
            async with aio.TaskGroup() as tasks:  # whoever cancels this block cancels its task
                count = await tasks.start(count_primes, request.path_params["below"])
            answer = JSONResponse({"primes": count, "in_flight": len(in_flight)})
            group.cancel_scope.cancel()
            return answer
        print("a client has gone, and its task with it", file=sys.stderr)
        return Response(status_code=499)
    finally:
        in_flight.discard(request)


async def leave_with_client(request: Request, handler: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    handler.cancel()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with aio.init(address="auto"):  # and leaves the cluster as it is
        yield


app = Starlette(routes=[Route("/primes/{below:int}", primes)], lifespan=lifespan)
