"""When files are loaded again: on a signal, and when they have changed and are whole.

Directories are watched, not files: an editor replaces a file by renaming another over it, and Kubernetes
swaps the symbolic link `..data` that all files of a volume lead through. What happened is not asked: after
the dust has settled the files are read, and compared by their digests with what was last handled. So each
change is handled once, and a touch not at all.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sidecar.config.problems import ConfigError
from sidecar.telemetry.log import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sidecar.clock import Clock
    from sidecar.config.load import Loaded, Source
    from sidecar.reload import Reloading

SETTLE: Final = 0.3
"""Seconds for which files must have been as they are before they count."""
SETTLE_INVALID: Final = 1.5
"""The same for files that are not valid: they may be half written."""
LONGEST_WRITE: Final = 30.0
"""Seconds after which a file counts although somebody still has it open for writing."""
POLL: Final = 5.0
"""Seconds between two looks where directories cannot be watched."""


class Watching:
    """Watches the files of one process's configuration."""

    def __init__(self, reloading: Reloading, source: Source, clock: Clock) -> None:
        self._reloading = reloading
        self._source = source
        self._clock = clock
        self._log = get_logger("sidecar.config")
        self._started = asyncio.Event()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._patterns: tuple[str, ...] = ()
        self._inotify: Any = None
        self._watched: dict[tuple[int, int], Any] = {}
        """By device and inode: under the same name another directory may have come."""

    def start(self) -> None:
        """Begins to watch; without a file there is nothing to."""
        self._started.set()
        if self._source.path is None and not self._reloading.handled:
            return
        self._open()
        self._changed.set()  # they may have changed since they were read
        self._run(self._handle())

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work, name="configuration")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def now(self, why: str) -> None:
        """Loads the files again, whatever they are; once all serves, where that has not been yet."""

        async def load() -> None:
            await self._started.wait()
            await self._reloading.reload(why)

        self._run(load())

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._inotify is not None:
            self._inotify.close()

    # -- what is watched -----------------------------------------------------------------------

    def _open(self) -> None:
        try:
            if sys.platform == "linux":
                from asyncinotify import Inotify

                self._inotify = Inotify()
                self._follow()
        except OSError as error:
            self._log.warning(
                "files cannot be watched, they are looked at now and then",
                seconds=POLL,
                reason=error.strerror or str(error),
            )
            if self._inotify is not None:
                self._inotify.close()
                self._inotify = None
        self._run(self._poll() if self._inotify is None else self._listen())

    def _follow(self) -> None:
        """Watches the directories that the configuration comes from now."""
        from asyncinotify import Mask

        mask = (
            Mask.CLOSE_WRITE
            | Mask.MOVED_TO
            | Mask.MOVED_FROM
            | Mask.CREATE
            | Mask.DELETE
            | Mask.MODIFY
            | Mask.ONLYDIR
        )
        wanted = dict(_identified(directories(self._reloading.handled, self._reloading.patterns)))
        for key in self._watched.keys() - wanted.keys():
            watch = self._watched.pop(key)
            try:
                self._inotify.rm_watch(watch)
            except (OSError, KeyError, ValueError):
                continue  # the directory is gone, and the watch with it
        for key in wanted.keys() - self._watched.keys():
            try:
                self._watched[key] = self._inotify.add_watch(wanted[key], mask)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EMFILE):
                    raise

    async def _listen(self) -> None:
        async for _ in self._inotify:
            self._changed.set()

    async def _poll(self) -> None:
        while True:
            await self._clock.sleep(POLL)
            self._changed.set()

    # -- what is made of it --------------------------------------------------------------------

    async def _handle(self) -> None:
        while True:
            await self._changed.wait()
            try:
                await self._settle()
            except Exception:  # noqa: BLE001 # whatever it is, the next change is to be looked at
                self._log.exception("the configuration could not be looked at")
                await self._clock.sleep(POLL)

    async def _settle(self) -> None:
        """Waits until the files are whole, then hands them over if they are new."""
        began = since = self._clock.now()
        seen: dict[str, str] | None = None
        while True:
            self._changed.clear()
            await self._clock.sleep(SETTLE)
            found = await asyncio.to_thread(self._read)
            sources = dict(found.sources)
            now = self._clock.now()
            if sources == self._reloading.handled:
                break
            if sources != seen or self._changed.is_set():
                seen, since = sources, now
                if now - began < LONGEST_WRITE:
                    continue
            patience = SETTLE_INVALID if isinstance(found, ConfigError) else SETTLE
            if now - began < LONGEST_WRITE and (
                now - since < patience or await asyncio.to_thread(being_written, sources)
            ):
                continue
            if isinstance(found, ConfigError):
                self._reloading.refuse(found, "a file changed")
            else:
                await self._reloading.offer(found, "a file changed")
            break
        if self._inotify is not None:
            self._follow()

    def _read(self) -> Loaded | ConfigError:
        try:
            return self._source.load()
        except ConfigError as error:
            return error


def directories(files: Iterable[str], patterns: Iterable[str]) -> set[str]:
    """Where changes of files show: where their names are, and where their contents are.

    Of a pattern, the directory in which its first wildcard stands.
    """
    found: set[str] = set()
    for name in files:
        path = Path(name)
        found.add(str(path.parent))
        # A link on the way: `..data` is in the named directory, another file's place is not.
        found.add(str(Path(os.path.realpath(path)).parent))
    for pattern in patterns:
        fixed = Path(pattern)
        while any(it in str(fixed) for it in "*?["):
            fixed = fixed.parent
        found.add(str(fixed if fixed.is_dir() else fixed.parent))
        found |= {str(it) for it in Path(fixed).rglob("*") if it.is_dir()} if "**" in pattern else set()
    return {name for name in found if Path(name).is_dir()}


def _identified(names: Iterable[str]) -> Iterator[tuple[tuple[int, int], str]]:
    """Directories by their device and inode, as far as they are there."""
    for name in names:
        try:
            found = Path(name).stat()
        except OSError:
            continue
        yield (found.st_dev, found.st_ino), name


def being_written(files: Iterable[str]) -> bool:
    """Whether somebody has one of the files open for writing, where the system tells.

    Linux grants a read lease only on a file that nobody has open for writing (fcntl(2), F_SETLEASE).
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    for name in files:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            if error.errno == errno.EAGAIN:
                return True
        finally:
            os.close(descriptor)  # and the lease with it
    return False
