"""A request body that can be sent again: what is read of it is kept, up to a size."""

from __future__ import annotations

from sidecar.exchange import Stream


class Recording(Stream):
    """Stands in for `source` and remembers what was read. After `rewind` it is read from its start.

    Nothing is buffered ahead: the body streams to the first attempt as if there were no recording.
    """

    __slots__ = ("_kept", "_kept_size", "_limit", "_position", "_stream", "replayable")

    def __init__(self, source: Stream, limit: int) -> None:
        super().__init__(None, source.length)
        self._stream = source
        self._limit = limit
        self._kept: list[bytes] = []
        self._kept_size = 0
        self._position = 0
        self.replayable = source.length is None or source.length <= limit
        """All that was read so far is still held."""

    async def read(self) -> bytes:
        if self._position < len(self._kept):
            data = self._kept[self._position]
            self._position += 1
            return data
        data = await self._stream.read()
        if self.replayable and data:
            self._kept_size += len(data)
            if self._kept_size > self._limit:
                self.replayable = False
                self._kept.clear()
                self._position = 0
            else:
                self._kept.append(data)
                self._position += 1
        return data

    def hold(self) -> None:
        self._stream.hold()

    def rewind(self) -> None:
        """The next `read` begins again. Only while `replayable`."""
        self._position = 0

    def close(self) -> None:
        self._kept.clear()
        self._stream.close()
