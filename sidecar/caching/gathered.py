"""A request body that is part of the key: read whole where it is small enough."""

from __future__ import annotations

from sidecar.exchange import Stream


class _Rest(Stream):
    """A body whose beginning was read already."""

    __slots__ = ("_begun", "_stream")

    def __init__(self, begun: list[bytes], stream: Stream) -> None:
        super().__init__(None, stream.length)
        self._begun = begun[::-1]
        self._stream = stream

    async def read(self) -> bytes:
        return self._begun.pop() if self._begun else await self._stream.read()

    def close(self) -> None:
        self._begun.clear()
        self._stream.close()


async def gather(body: Stream, most: int) -> bytes | Stream:
    """All of `body`; a stream of it where it is more than `most` bytes. Raises what broke it."""
    parts = []
    size = 0
    while data := await body.read():
        parts.append(data)
        size += len(data)
        if size > most:
            return _Rest(parts, body)
    return b"".join(parts)
