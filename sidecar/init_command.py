"""`sidecar init`: what its arguments lead to."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from sidecar.config.load import USUAL, load
from sidecar.config.problems import ConfigError

if TYPE_CHECKING:
    from sidecar.config.addresses import Url
    from sidecar.starter.openapi import Document
    from sidecar.starter.writing import Written

FINE, FAILED, WRONG = 0, 1, 2
USUAL_DOCUMENT: Final = "/openapi.json"
USUAL_APP: Final = "http://127.0.0.1:8000"


def arguments(command: Any) -> None:
    """Adds `init` to the commands."""
    init = command(
        "init",
        _run,
        "write a first configuration, with comments, from an app's OpenAPI document",
        "sidecar init --app http://127.0.0.1:8000",
    )
    init.add_argument(
        "directory", nargs="?", type=Path, default=Path(), metavar="DIR", help="where to (default: here)"
    )
    init.add_argument(
        "--app", metavar="URL", help=f"where the app listens; its {USUAL_DOCUMENT} is read, if it has one"
    )
    init.add_argument("--openapi", metavar="FILE|URL", help="read this document, in JSON or YAML")
    init.add_argument("--force", action="store_true", help="write over files that are there")


def _run(given: argparse.Namespace) -> int:
    from sidecar.starter import fetching
    from sidecar.starter.openapi import Document, DocumentError
    from sidecar.starter.writing import write

    document, source = Document("", ""), ""
    try:
        app = _url(given.app)
        if given.openapi is not None:
            document, source = _document(given.openapi), given.openapi
        elif app is not None and app.unix is None:
            place = urljoin(f"{app}/", USUAL_DOCUMENT)
            try:
                document, source = _document(place), place
            except (fetching.NotThereError, DocumentError) as error:
                # It answers, but has no such document: many apps have none.
                print(f"sidecar: {error}: one route for all that reads is written", file=sys.stderr)
        url = app or _url(document.server or _origin(source) or USUAL_APP)
        assert url is not None
    except (fetching.FetchError, DocumentError) as error:
        return _failed(str(error))
    except ValueError as error:
        return _wrong(str(error))
    for remark in document.left_out:
        print(f"sidecar: left out: {remark}", file=sys.stderr)
    return _put(given.directory, write(document, url, source), force=given.force)


def _url(text: str | None) -> Url | None:
    """Raises ValueError."""
    if text is None:
        return None
    from sidecar.config.addresses import parse_url

    return parse_url(text)


def _document(place: str) -> Document:
    from sidecar.starter.fetching import fetch
    from sidecar.starter.openapi import read_document

    return read_document(fetch(place), place)


def _origin(place: str) -> str:
    """Where a document came from, which most likely is the app; empty for a file."""
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in {"http", "https"} else ""


def _put(directory: Path, written: Written, *, force: bool) -> int:
    """Writes both files, or none."""
    files = {
        directory / USUAL: written.sidecar,
        directory / "policies" / f"{written.policy_name}.yaml": written.policy,
    }
    there = [file for file in files if file.exists()]
    if there and not force:
        for file in there:
            print(f"sidecar: {file} is there (move it away, or give --force)", file=sys.stderr)
        return FAILED
    try:
        _check(written)
        for file, text in files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, "utf-8")
            print(f"written: {file}")
    except ConfigError as error:
        for problem in error.problems:
            print(f"sidecar: the document leads to {problem}", file=sys.stderr)
        return FAILED
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}")
    print(f"next: sidecar check, then sidecar run -c {directory / USUAL}")
    return FINE


def _check(written: Written) -> None:
    """What is written must be right. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="sidecar-init-") as name:
        folder = Path(name)
        (folder / "policies").mkdir()
        (folder / USUAL).write_text(written.sidecar, "utf-8")
        (folder / "policies" / f"{written.policy_name}.yaml").write_text(written.policy, "utf-8")
        load(folder / USUAL, {})


def _failed(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return FAILED


def _wrong(text: str) -> int:
    print(f"sidecar: {text}", file=sys.stderr)
    return WRONG
