"""Handlers of a web service that await tasks: FastAPI under uvicorn, driven over HTTP."""

import asyncio
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse

import raylite as ray
from raylite import aio
from raylite.exceptions import RayTaskError

pytestmark = pytest.mark.usefixtures("cluster")

Run = Callable[[Callable[[], Any]], Any]
SOON = 20

GATE = threading.Event()
RUNNING = threading.Event()
ENDED = threading.Event()


@pytest.fixture(autouse=True)
def _gates() -> Iterator[None]:
    for each in (GATE, RUNNING, ENDED):
        each.clear()
    yield
    GATE.set()


def square(n: int) -> int:
    assert GATE.wait(SOON)
    return n * n


def root(n: int) -> float:
    if n < 0:
        raise ValueError(f"{n} has no root")
    return float(n**0.5)


def stay() -> None:
    RUNNING.set()
    try:
        while not GATE.wait(0.005):
            pass
    finally:
        ENDED.set()


def lines() -> Iterator[str]:
    try:
        for n in range(1_000_000):
            RUNNING.set()
            yield f"line {n}\n"
    finally:
        ENDED.set()


remote_square, remote_root, remote_stay = ray.remote(square), ray.remote(root), ray.remote(stay)
remote_lines = ray.remote(_generator_backpressure_num_objects=4)(lines)


class Handlers:
    """How many of the service are under way."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self.all_here = asyncio.Event()
        self.left = asyncio.Event()


HANDLERS: list[Handlers] = []


async def client_stays(request: Request) -> AsyncIterator[anyio.CancelScope]:
    """A dependency: a scope that is cancelled when the client has gone."""

    async def watch(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with anyio.create_task_group() as group:
        scope = anyio.CancelScope()
        group.start_soon(watch, scope)
        yield scope
        group.cancel_scope.cancel()


app = FastAPI()


@app.get("/square/{n}")
async def get_square(n: int) -> int:
    handlers = HANDLERS[-1]
    handlers.count += 1
    if handlers.count == 40:
        handlers.all_here.set()
    return await remote_square.remote(n)


@app.get("/root/{n}")
async def get_root(n: int) -> float:
    try:
        return await remote_root.remote(n)
    except RayTaskError as error:
        raise HTTPException(422, str(error.cause)) from error


@app.get("/blocking/{n}")
def get_blocking(n: int) -> float:  # FastAPI calls it in a thread
    return ray.get(remote_root.remote(n))


@app.get("/stay")
async def get_stay(scope: Annotated[anyio.CancelScope, Depends(client_stays)]) -> None:
    with scope:
        async with aio.TaskGroup() as tasks:
            tasks.start(remote_stay)
    assert scope.cancelled_caught
    HANDLERS[-1].left.set()


@app.get("/lines")
async def get_lines() -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        async with aio.TaskGroup() as tasks:
            async for ref in tasks.start(remote_lines):
                yield await ref

    return StreamingResponse(body(), media_type="text/plain")


@asynccontextmanager
async def served(socket: Path) -> AsyncIterator[httpx.AsyncClient]:
    HANDLERS[:] = [Handlers()]
    server = uvicorn.Server(uvicorn.Config(app, uds=str(socket), log_config=None, log_level=30))
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup()
    transport = httpx.AsyncHTTPTransport(uds=str(socket), limits=httpx.Limits(max_connections=None))
    try:
        async with httpx.AsyncClient(
            transport=transport, base_url="http://service", timeout=SOON
        ) as client:
            yield client
    finally:
        await server.shutdown()
        await asyncio.get_running_loop().shutdown_default_executor()


def test_many_requests_wait_for_tasks_at_once(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as client:
            requests = asyncio.gather(*(client.get(f"/square/{n}") for n in range(40)))
            await HANDLERS[0].all_here.wait()  # with four CPUs, and none of them has ended
            GATE.set()
            assert [response.json() for response in await requests] == [n * n for n in range(40)]

    run(main)


def test_a_task_s_error_is_its_handler_s(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as client:
            assert (await client.get("/root/9")).json() == 3
            answer = await client.get("/root/-1")
            assert (answer.status_code, answer.json()) == (422, {"detail": "-1 has no root"})

    run(main)


def test_handlers_in_threads_may_block(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as client:
            answers = await asyncio.gather(*(client.get(f"/blocking/{n * n}") for n in range(10)))
            assert [answer.json() for answer in answers] == list(range(10))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(main)


def test_a_client_that_goes_cancels_the_task_of_its_request(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as client:
            request = asyncio.create_task(client.get("/stay"))
            assert await asyncio.to_thread(RUNNING.wait, SOON)
            request.cancel()
            assert await asyncio.to_thread(ENDED.wait, SOON)
            await HANDLERS[0].left.wait()
            assert (await client.get("/root/9")).json() == 3

    run(main)


def test_a_client_that_goes_in_the_middle_of_a_stream_ends_its_generator(
    run: Run, tmp_path: Path
) -> None:
    async def main() -> None:
        async with served(tmp_path / "s") as client:
            async with client.stream("GET", "/lines") as response:
                lines = response.aiter_lines()
                assert [await anext(lines) for _ in range(3)] == ["line 0", "line 1", "line 2"]
            assert await asyncio.to_thread(ENDED.wait, SOON)

    run(main)
