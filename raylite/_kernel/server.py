"""`LinkServer`: grpclib's server, on connections of ours that somebody else accepts."""

import asyncio
from contextlib import suppress
from typing import Any

from grpclib.config import Configuration
from grpclib.encoding.base import CodecBase
from grpclib.server import Handler as ServerHandler, Server

from raylite._kernel.connection import Connection, Connections

CONFIG = Configuration()


class PacketCodec(CodecBase):
    """Packets are encoded above; grpclib carries them as they are. They are protobuf messages."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class LinkServer(Server):
    """Serves what a network's connections bring.

    Args:
        network: What handles requests, as grpclib asks for it, and keeps the connections.
    """

    def __init__(self, network: Any) -> None:
        super().__init__([network], codec=PacketCodec(), config=CONFIG)
        self._network: Connections = network

    def connection(self) -> Connection:
        """Return what a connection that was accepted is served by."""
        self.__gc_step__()
        handler = ServerHandler(
            self._mapping, self._codec, self._status_details_codec, self.__dispatch__
        )
        self._handlers.add(handler)
        return Connection(self._network, handler, self._config, self._h2_config)

    async def shut(self, seconds: float) -> None:
        """Cancel what still serves a request, and wait for it, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for handler in list(self._handlers):
                    handler.close()
                    await handler.wait_closed()
