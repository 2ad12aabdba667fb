"""What keeps a scenario from being run."""

from __future__ import annotations


class StandError(Exception):
    """It cannot be set up, broken or mended; the message is for the user."""
