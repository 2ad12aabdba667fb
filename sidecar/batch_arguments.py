"""The arguments of `sidecar batch`: by themselves, as every command starts with all arguments."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

ADMIN: Final = "http://127.0.0.1:9901"


def arguments(parser: argparse.ArgumentParser, act: Any) -> None:
    """Adds the actions to `sidecar batch`."""
    common = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    common.add_argument(
        "--admin",
        metavar="URL",
        help=f"the sidecar's admin listener (default: SIDECAR_ADMIN_URL, or else {ADMIN})",
    )
    common.add_argument("--token", help="its admin.token (default: SIDECAR_ADMIN_TOKEN)")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")

    def action(name: str, what: str, example: str) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = actions.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=f"for example: {example}",
            parents=[common],
            allow_abbrev=False,
        )
        made.set_defaults(act=act)
        return made

    submit = action(
        "submit", "submit a file, one request a line", "sidecar batch submit requests.ndjson --wait"
    )
    submit.add_argument("file", metavar="FILE", help="NDJSON; - is the standard input")
    submit.add_argument("--wait", action="store_true", help="show the progress; exit 1 where a line failed")
    submit.add_argument("--results", type=Path, metavar="FILE", help="wait, then write the results there")
    submit.add_argument("--name", help="for people")
    submit.add_argument("--priority", choices=("high", "normal", "low"), help="among batches (default: low)")
    submit.add_argument("--max-concurrency", metavar="N", help="lines in flight at most")
    submit.add_argument("--deadline", metavar="TIME", help="for all lines to begin, such as 2h")
    submit.add_argument("--stop-on", metavar="N", help="failed lines after which the rest is left")
    submit.add_argument("--retries", metavar="N", help="repetitions of a line that failed")
    submit.add_argument("--on-error", choices=("reject", "skip"), help="what bad lines do (default: reject)")
    status = action("status", "print how a batch stands", "sidecar batch status batch_1f…")
    status.add_argument("id", metavar="ID")
    status.add_argument("--wait", action="store_true", help="show the progress; exit 1 where a line failed")
    status.add_argument("--json", action="store_true", help="all that is known, as JSON")
    results = action(
        "results", "print results, those too that are still to come", "sidecar batch results batch_1f…"
    )
    results.add_argument("id", metavar="ID")
    cancel = action("cancel", "send none of the lines that have not begun", "sidecar batch cancel batch_1f…")
    cancel.add_argument("id", metavar="ID")
    action("list", "print all batches, the newest first", "sidecar batch list")
