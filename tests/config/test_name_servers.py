"""DNS servers as they stand in sidecar.yaml."""

from __future__ import annotations

import pytest

from sidecar.config.addresses import Address
from sidecar.config.schema import Dns


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.2", Address("10.0.0.2", 53)),
        ("10.0.0.2:5353", Address("10.0.0.2", 5353)),
        ("fd00::2", Address("fd00::2", 53)),
        ("[fd00::2]", Address("fd00::2", 53)),
        ("[fd00::2]:5353", Address("fd00::2", 5353)),
    ],
)
def test_servers(written: str, address: Address) -> None:
    """An IP address, with a port where it is not 53; shown as it is asked."""
    settings = Dns.model_validate({"servers": [written]})
    assert settings.servers == (address,)
    assert settings.model_dump(mode="json") == {"servers": [str(address)]}
