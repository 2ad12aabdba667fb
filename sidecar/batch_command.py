"""`sidecar batch`: what its arguments lead to."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Final

from sidecar.batch_arguments import ADMIN
from sidecar.batch_client import BatchClient, BatchError, CannotWrite, Progress, line_of

OPTIONS: Final = ("name", "priority", "max_concurrency", "deadline", "stop_on", "retries", "on_error")


def run(given: argparse.Namespace) -> int:
    """Does it; returns the exit code: 0 fine, 1 it failed or a line did, 2 a file cannot be opened."""
    try:
        return asyncio.run(_run(given))
    except CannotWrite as error:
        if isinstance(error.__cause__, BrokenPipeError):  # `| head`: it has what it wanted
            raise error.__cause__ from None
        print(f"sidecar: {error}", file=sys.stderr)
        return 1
    except BatchError as error:
        print(f"sidecar: {error}", file=sys.stderr)
        return 1


async def _run(given: argparse.Namespace) -> int:
    act: Callable[[BatchClient, argparse.Namespace], Awaitable[int]] = {
        "submit": _submit,
        "status": _status,
        "results": _results,
        "cancel": _cancel,
        "list": _list,
    }[given.action]
    url = given.admin or os.environ.get("SIDECAR_ADMIN_URL") or ADMIN
    token = given.token or os.environ.get("SIDECAR_ADMIN_TOKEN")
    async with BatchClient(url, token) as client:
        return await act(client, given)


async def _submit(client: BatchClient, given: argparse.Namespace) -> int:
    options = {name: str(value) for name in OPTIONS if (value := getattr(given, name)) is not None}
    results: Path | None = given.results
    path = Path(given.file)
    with ExitStack() as files:
        source: BinaryIO = sys.stdin.buffer
        try:
            if given.file != "-":
                source = files.enter_context(path.open("rb"))  # noqa: ASYNC230 - nothing else runs
            if results is not None:  # that it cannot be written is better known now than after hours
                path = results
                path.open("ab").close()
        except OSError as error:
            print(f"sidecar: {path}: {error.strerror}", file=sys.stderr)
            return 2
        batch = await client.submit(source, options)
    for bad in batch.get("errors", ()):
        print(f"sidecar: skipped line {bad['line']}: {bad['detail']}", file=sys.stderr)
    name: str = batch["id"]
    print(name, flush=True)
    if not given.wait and results is None:
        return 0
    code = _code(await client.watch(name, Progress()))
    if results is not None:
        with results.open("wb") as to:
            await client.results(name, to)
    return code


async def _status(client: BatchClient, given: argparse.Namespace) -> int:
    if given.wait:
        batch = await client.watch(given.id, Progress())
    else:
        batch = await client.status(given.id)
    if given.json:
        print(json.dumps(batch, indent=2))
    elif not given.wait:
        print(line_of(batch))
    return _code(batch) if given.wait else 0


async def _results(client: BatchClient, given: argparse.Namespace) -> int:
    await client.results(given.id, sys.stdout.buffer)
    return 0


async def _cancel(client: BatchClient, given: argparse.Namespace) -> int:
    print(line_of(await client.cancel(given.id)))
    return 0


async def _list(client: BatchClient, _: argparse.Namespace) -> int:
    for batch in await client.listed():
        name = f" {batch['name']}" if batch.get("name") else ""
        print(line_of(batch) + name)
    return 0


def _code(batch: dict[str, Any]) -> int:
    counts = batch["counts"]
    return 0 if batch["status"] == "completed" and counts["completed"] == counts["total"] else 1
