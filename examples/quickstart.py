"""Words and long lines of the standard library: shared object, nested tasks, `await`."""

import asyncio
import re
import sysconfig
import time
from collections import Counter
from pathlib import Path

import raylite as ray

Span = tuple[str, int, int]  # a file's name, and where it begins and ends in the text
STARTED = time.perf_counter()


@ray.remote
def count_words(corpus: bytes, spans: list[Span]) -> Counter[bytes]:
    return Counter(re.findall(rb"[A-Za-z_]{4,}", corpus[spans[0][1] : spans[-1][2]]))


@ray.remote
def survey(shared: list[ray.ObjectRef[bytes]], spans: list[Span]) -> Counter[bytes]:
    """Start tasks of its own; a reference inside a list is passed on, not fetched."""
    return sum(ray.get([count_words.remote(shared[0], s) for s in split(spans, 4)]), Counter())


@ray.remote
def longest_line(corpus: bytes, spans: list[Span]) -> tuple[int, str]:
    return max((len(max(corpus[a:b].split(b"\n"), key=len)), name) for name, a, b in spans)


def split(spans: list[Span], parts: int) -> list[list[Span]]:
    return [spans[len(spans) * i // parts : len(spans) * (i + 1) // parts] for i in range(parts)]


def say(text: str) -> None:
    print(f"{time.perf_counter() - STARTED:6.2f} s  {text}")


async def all_words(corpus: ray.ObjectRef[bytes], spans: list[Span]) -> Counter[bytes]:
    parts = [survey.remote([corpus], part) for part in split(spans, 4)]
    return sum([await part for part in parts], Counter())


if __name__ == "__main__":
    root, texts, spans, end = Path(sysconfig.get_path("stdlib")), [], [], 0
    for path in (p for p in sorted(root.rglob("*.py")) if "site-packages" not in p.parts):
        texts.append(path.read_bytes())
        spans.append((str(path.relative_to(root)), end, end := end + len(texts[-1])))
    say(f"read {len(spans)} files, {end / 1e6:.0f} MB")
    ray.init()
    corpus = ray.put(b"".join(texts))
    say("the cluster is up and shares the text")
    words = asyncio.run(all_words(corpus, spans))
    common = ", ".join(f"{word.decode()} {count}" for word, count in words.most_common(5))
    say(f"{words.total()} words; {common}")
    longest = sorted(ray.get([longest_line.remote(corpus, part) for part in split(spans, 16)]))
    say(f"longest lines: {', '.join(f'{name} ({length})' for length, name in longest[:-4:-1])}")
    ray.shutdown()
    say("the cluster is gone")
