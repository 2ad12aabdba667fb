"""One response body for many: read once, handed to everybody who waits for it."""

from __future__ import annotations

import asyncio

from sidecar.exchange import Stream


class _Seat:
    """One consumer's place: the `Source` of its stream."""

    __slots__ = ("_hall", "stream")

    def __init__(self, hall: Broadcast, length: int | None) -> None:
        self._hall = hall
        self.stream = Stream(self, length)

    def pause(self) -> None:
        self._hall.slow.add(self)

    def resume(self) -> None:
        self._hall.slow.discard(self)
        self._hall.wake()

    def abandon(self) -> None:
        self._hall.leave(self)


class Broadcast:
    """Reads `body` to its end and keeps up to `keep` bytes of it.

    While all of it is kept nobody waits for anybody, and whoever joins gets it from its start. Past that
    nobody can join any more, and the slowest consumer sets the pace.
    """

    def __init__(self, body: Stream, keep: int) -> None:
        self.slow: set[_Seat] = set()
        self._body = body
        self._keep = keep
        self._chunks: list[bytes] = []
        self._size = 0
        self._seats: list[_Seat] = []
        self._waiter: asyncio.Future[None] | None = None
        self.kept = True
        """All that was read so far is still here."""
        self._over = False
        self._error: BaseException | None = None

    def join(self) -> Stream:
        """A stream of the whole body, from its start. Only while `kept`."""
        seat = _Seat(self, self._body.length)
        for chunk in self._chunks:
            seat.stream.feed(chunk)
        if self._error is not None:
            seat.stream.fail(self._error)
        elif self._over:
            seat.stream.finish()
        else:
            self._seats.append(seat)
        return seat.stream

    async def run(self) -> bytes | None:
        """Returns the body, or None when it is larger than what is kept. Raises what broke it."""
        body = self._body
        try:
            while data := await body.read():
                self._size += len(data)
                if self.kept and self._size > self._keep:
                    self.kept = False
                    self._chunks.clear()
                if self.kept:
                    self._chunks.append(data)
                elif not self._seats:
                    body.close()
                for seat in tuple(self._seats):
                    seat.stream.feed(data)
                while self.slow and not self.kept:
                    self._waiter = asyncio.get_running_loop().create_future()
                    await self._waiter
        except BaseException as error:
            self._error = error
            for seat in self._seats:
                seat.stream.fail(error)
            self._seats.clear()
            body.close()
            raise
        self._over = True
        for seat in self._seats:
            seat.stream.finish()
        self._seats.clear()
        return b"".join(self._chunks) if self.kept else None

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def leave(self, seat: _Seat) -> None:
        if seat in self._seats:
            self._seats.remove(seat)
        self.slow.discard(seat)
        if not self.kept and not self._seats:  # nobody reads it, and it will not be stored
            self._body.close()
        self.wake()
