"""A crawler: in one worker hundreds of pages wait for the network, in others their words are counted.

`fetch` is an `async def` task: many overlap, on one lease. What computes is a task of the other kind.
"""

import asyncio
import json
from collections import Counter

import raylite as ray
from raylite import aio

LAST = 510  # pages form a tree, in which each has links to two others
open_requests = Counter[str]()


@ray.remote
async def fetch(port: int, page: int) -> tuple[list[int], Counter[str]]:
    """Return the links of a page, and how often each word occurs in it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /%d HTTP/1.0\r\n\r\n" % page)
    answer = await reader.read()
    writer.close()
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    return body["links"], await count_words.remote(body["text"])


@ray.remote
def count_words(text: str) -> Counter[str]:
    return Counter(text.split())


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer slowly, as the internet does."""
    open_requests["now"] += 1
    open_requests["most"] = max(open_requests["most"], open_requests["now"])
    page = int((await reader.readuntil(b"\r\n\r\n")).split()[1][1:])
    await asyncio.sleep(0.2)
    links = [link for link in (2 * page + 1, 2 * page + 2) if link <= LAST]
    body = json.dumps({"links": links, "text": f"this is page {page} " * 50})
    writer.write(f"HTTP/1.0 200 OK\r\n\r\n{body}".encode())
    open_requests["now"] -= 1
    writer.close()


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=LAST)
    port = server.sockets[0].getsockname()[1]
    words, pages, level = Counter[str](), 0, [0]
    async with server, aio.init(num_cpus=2):
        while level:
            found = await aio.gather(*[fetch.remote(port, page) for page in level])
            pages += len(found)
            words.update(sum((counted for _, counted in found), Counter()))
            level = [link for links, _ in found for link in links]
    print(f"{pages} pages say 'page' {words['page']} times")
    print(f"up to {open_requests['most']} requests were open at a time")


asyncio.run(main())
