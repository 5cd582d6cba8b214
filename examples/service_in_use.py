"""The service of `service.py` at work: on a cluster that a command started, under uvicorn, with clients."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from tempfile import TemporaryDirectory

import httpx

RAYLITE = (sys.executable, "-c", "from raylite.cli import main; main()")
UVICORN = (sys.executable, "-m", "uvicorn", "service:app", f"--app-dir={os.path.dirname(__file__)}")


def raylite(*words: str) -> None:
    print("$ raylite", *words)
    subprocess.run([*RAYLITE, *words], check=True, stdout=subprocess.DEVNULL)


def show(log: Iterator[str], until: str) -> None:
    line = ""
    while until not in line and (line := next(log, "")):
        print("    ", line, end="")


async def use(socket: str, log: Iterator[str]) -> None:
    primes = "http://service/primes"
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=socket)) as client:
        requests = [client.get(f"{primes}/{10**6 + n}", timeout=60) for n in range(8)]
        answers = [response.json() for response in await asyncio.gather(*requests)]
        most = max(answer["in_flight"] for answer in answers)
        print(f"there are {answers[0]['primes']} primes below a million")
        print(f"{len(answers)} requests were answered, {most} of them in flight at once")
        with suppress(httpx.ReadTimeout):  # nobody waits so long for those below a hundred million
            await client.get(f"{primes}/{10**8}", timeout=0.1)
        show(log, until="a client has gone")


def main(folder: str) -> None:
    raylite("start", "--head", "--port=0", "--num-cpus=2")
    try:
        words = [*UVICORN, f"--uds={folder}/socket", "--no-access-log"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as service:
            log = iter(service.stderr or ())
            show(log, until="running on")
            try:
                asyncio.run(use(f"{folder}/socket", log))
            finally:
                service.terminate()  # uvicorn lets the service leave the cluster
                show(log, until="Finished")
    finally:
        raylite("stop")


if __name__ == "__main__":
    with TemporaryDirectory(prefix="rl") as temporary:  # apart from other clusters of this machine
        os.environ["RAYLITE_TMPDIR"] = temporary
        main(temporary)
