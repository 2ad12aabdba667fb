"""The sample app, unchanged, between both planes, while Google fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml

from tests.examples.conftest import payload, program
from tests.support.processes import Sidecar, free_port, until_connects

if TYPE_CHECKING:
    from tests.examples.conftest import Fake

POLICIES = Path(__file__).resolve().parents[2] / "policies"


def told(reply: httpx.Response) -> tuple[Any, ...]:
    """What the score of an answer rests on."""
    body = reply.json()
    results, transport = body["matching_results"], body["transport_intelligence"]
    return results["total_score"], results["confidence"], transport["distance_km"]


@pytest.mark.timeout(120)
async def test_google_fails(tmp_path: Path, providers: Fake) -> None:
    """Warm: score, distance and confidence as with Google up. Cold: marked, and not kept for afterwards.

    Its own breaker does not open: after more failures than it bears the app still asks Google.
    """
    egress, port = free_port(), free_port()
    google = (POLICIES / "google-maps.yaml").read_text()
    upstream = str(providers.http.base_url).rstrip("/")
    google = google.replace("upstream: https://maps.googleapis.com", f"upstream: {upstream}")
    google = google.replace("open_for: 5s", "open_for: 100ms").replace("open_max: 60s", "open_max: 100ms")
    sidecar = Sidecar(tmp_path, port)
    main = yaml.safe_load((tmp_path / "sidecar.yaml").read_text())
    main["listen"]["egress"] = f"127.0.0.1:{egress}"
    main["policies"] = [str(POLICIES / "nextvision.yaml"), "google.yaml"]
    environment = {"NEXTVISION_MAPS_BASE": f"http://127.0.0.1:{egress}/google-maps/maps/api"}
    (tmp_path / "google.yaml").write_text(google)
    with program("nextvision_app.py", environment=environment) as address:
        main["app"]["url"] = f"http://{address}"
        (tmp_path / "sidecar.yaml").write_text(yaml.safe_dump(main))
        await sidecar.start()
        await until_connects(egress)
        try:
            async with httpx.AsyncClient(base_url=sidecar.url, timeout=30) as client:

                async def ask(candidate: str, **members: Any) -> httpx.Response:
                    body = {**payload("matching_request.json"), **members}
                    return await client.post(f"/api/v1/matching/candidate/{candidate}", json=body)

                well = await ask("c1")
                assert "sidecar-degraded" not in well.headers
                providers.switch(google={"mode": "fail"})
                warm = [await ask("c1"), await ask("c2")]
                assert [told(reply) for reply in warm] == [told(well)] * 2
                cold = await ask("c3", job_address="1 Rue Jamais Vue, Lyon")
                assert cold.headers["sidecar-degraded"] == "upstream=google-maps"
                # The app has kept the fallback's place, and calls nobody. Whose request it is is all one.
                for candidate in ("c3", "c3", "c3b"):
                    again = await ask(candidate, job_address="1 Rue Jamais Vue, Lyon")
                    assert again.headers["sidecar-degraded"] == "upstream=google-maps"
                    assert "hit" not in again.headers["cache-status"]
                for number in range(4):
                    await ask("c4", job_address=f"{number} Rue Inconnue, Lyon")
                await ask("c5", job_address="99 Rue Toute Neuve, Lyon")
                providers.switch(google={"mode": "ok"})
                late = await ask("c6", job_address="1 Rue Jamais Vue, Lyon")
                assert late.headers["sidecar-degraded"] == "upstream=google-maps"
                assert "sidecar-degraded" not in (await ask("c7")).headers
        finally:
            await sidecar.end()
    # The app's breaker would have kept this call from being made.
    assert any("Toute" in line["path"] for line in sidecar.requests() if line["route"] == "geocode")
