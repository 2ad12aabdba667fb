"""Results of lines that the batch itself ends."""

from __future__ import annotations

from typing import Final

from sidecar.batch.calls import ended
from sidecar.batch.jobs import Claimed, Outcome, Result

_WHY: Final = {
    "cancelled": ("batch_cancelled", "The batch was cancelled"),
    "deadline": ("batch_expired", "The deadline of the batch passed"),
    "stopped": ("batch_stopped", "The batch was stopped by its failures"),
}


def unknown(claimed: Claimed) -> Result:
    """The result of a line of which nobody knows whether it was done."""
    return ended(
        claimed.item,
        Outcome.UNKNOWN,
        "unknown",
        "It is unknown whether this was done",
        "the process that had sent it died before its answer was stored, and it is not safe to repeat",
    )


def given_up(claimed: Claimed, reason: str, failures: int) -> Result:
    """The result of a line that is not to be sent (any more), for the batch's `reason`.

    `failures` of it there were so far, of a kind that a repetition may mend. What may have been done is not
    told as never sent: whoever reads the result may have to look.
    """
    code, why = _WHY.get(reason, _WHY["stopped"])
    item = claimed.item
    if claimed.in_doubt and not item.repeatable:
        return unknown(claimed)
    if failures:
        title = f"{why} before this line was repeated"
        times = "once" if failures == 1 else f"{failures} times"
        detail = f"it was sent {times}, and failed in a way that may pass"
    elif claimed.in_doubt:
        title = f"{why} before this line was repeated"
        detail = "the process that had sent it died before its answer was stored"
    else:
        title, detail = f"{why} before this line began", "it was not sent"
    return ended(item, Outcome.FAILED, code, title, detail)
