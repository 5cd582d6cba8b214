"""A bulletin: one publisher, many subscribers, who are all told the same at the same moments.

What changes between two moments makes one message, whose bytes are made once, however many there
are to read it. A `Topic` tells every change to each by itself, which is N² of everything where N
processes hear of one another.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import NamedTuple

from raylite._kernel.codec import Encoded
from raylite._kernel.topic import Topic

GATHER = 0.01  # seconds between two messages at least
EGRESS = 50e6  # bytes a second that all subscribers together are told, in the mean
SMALLEST = 50_000  # bytes that a message counts as at least, for it costs time, however short


class _Issue(NamedTuple):
    news: Encoded
    whole: Encoded  # what those read who came since the last issue, and whose first this is


class Bulletin:
    """News for whoever subscribes. `run` issues them; nobody is told anything before.

    The first news after a rest are told at once. Then there is a pause, which grows with what was
    said and to how many: the publisher's process has more to do than this.

    Args:
        present: Makes the message that says all there is.
        news: Makes the one that says what changed since it was last called; b"" if nothing did.
        longest: Seconds that a change may wait for the next message, however much was said.
    """

    def __init__(
        self, present: Callable[[], bytes], news: Callable[[], bytes], longest: float
    ) -> None:
        self._make_present = present
        self._make_news = news
        self._longest = longest
        self._topic = Topic[_Issue]()
        self._has_news = asyncio.Event()
        self._newcomers = 0  # who came since the last issue, to a present that was not the latest
        self._whole: Encoded | None = None  # as it was at the last issue, if anybody has asked

    def changed(self) -> None:
        """There are news."""
        self._has_news.set()

    async def messages(self) -> AsyncGenerator[Encoded, None]:
        """Subscribe: iterate over the present, then over every message."""
        with self._topic.subscribe() as issues:
            if self._has_news.is_set():
                self._newcomers += 1
                yield (await anext(issues)).whole
            else:
                yield self._present()
            async for issue in issues:
                if issue.news.body:
                    yield issue.news

    async def run(self) -> None:
        """Tell the news, for ever."""
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            news = Encoded(self._make_news())
            self._whole = None
            newcomers, self._newcomers = self._newcomers, 0
            if news.body or newcomers:
                whole = self._present() if newcomers else news
                self._topic.publish(_Issue(news, whole))
                said = newcomers * max(len(whole.body), SMALLEST)
                said += (len(self._topic) - newcomers) * max(len(news.body), SMALLEST)
                await asyncio.sleep(self.pause(said))

    def pause(self, said: int) -> float:
        """Return the seconds after so many bytes."""
        return min(max(GATHER, said / EGRESS), self._longest)

    def _present(self) -> Encoded:
        if self._whole is None:
            self._whole = Encoded(self._make_present())
        return self._whole
