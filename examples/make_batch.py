"""Prints a batch file: each of some candidates matched against each of some jobs, one line a pair.

python examples/make_batch.py [CANDIDATES JOBS] > batch.ndjson   # 50 and 20: 1,000 lines
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

PLACES = ("Paris 8e", "La Défense, Courbevoie", "Boulogne-Billancourt", "Saint-Denis", "Montreuil")
PAYLOAD = Path(__file__).with_name("payloads") / "matching_transport_request.json"


def main(candidates: int = 50, jobs: int = 20) -> None:
    """The jobs differ in their address, of which there are as many as `PLACES`: Google is asked for few."""
    payload = json.loads(PAYLOAD.read_text(encoding="utf-8"))
    for candidate in range(1, candidates + 1):
        for job in range(1, jobs + 1):
            line = {
                "custom_id": f"candidate-{candidate}-job-{job}",
                "method": "POST",
                "url": f"/api/v3/matching/candidate/{candidate}/transport",
                "body": {**payload, "job_address": PLACES[job % len(PLACES)]},
            }
            print(json.dumps(line, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:]))
