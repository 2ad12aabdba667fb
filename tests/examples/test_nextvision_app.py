"""The sample app answers as Nextvision does, its faults included."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.examples.conftest import EXAMPLES, payload

if TYPE_CHECKING:
    from tests.examples.conftest import Fake

MATCHING = "/api/v1/matching/candidate/c1"
TRANSPORT = "/api/v3/matching/candidate/c1/transport"
INTELLIGENT = "/api/v3/intelligent-matching"
CV = {"cv_file": ("cv.txt", (EXAMPLES / "payloads" / "cv.txt").read_bytes())}
JOB = {"job_file": ("job.txt", (EXAMPLES / "payloads" / "job.txt").read_bytes())}


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs each time."""
    metadata = {
        key: value
        for key, value in answer["metadata"].items()
        if key not in {"timestamp", "processing_time_ms"}
    }
    return {**answer, "metadata": metadata}


def test_a_matching_is_the_sample(app: httpx.Client) -> None:
    """The sample request gets the sample answer."""
    answer = app.post(MATCHING, json=payload("matching_request.json"))
    assert timeless(answer.json()) == timeless(payload("matching_response_ok.json"))


def test_google_down_is_hidden_behind_200(fresh_app: httpx.Client, providers: Fake) -> None:
    """Google down: the answer is the sample for that, a 200 that places everybody in the centre of Paris."""
    providers.switch(google={"mode": "fail"})
    answer = fresh_app.post(MATCHING, json=payload("matching_request.json"))
    assert answer.status_code == 200
    assert timeless(answer.json()) == timeless(payload("matching_response_google_down.json"))


@pytest.mark.parametrize("mode", ["ok", "reset", "zero_results"])
def test_a_failure_raises_the_score(fresh_app: httpx.Client, providers: Fake, mode: str) -> None:
    """0.655 while Google answers, 0.793 with 0.0 km and the same confidence when it does not."""
    providers.switch(google={"mode": mode})
    answer = fresh_app.post(TRANSPORT, json=payload("matching_transport_request.json"))
    results, transport = answer.json()["matching_results"], answer.json()["transport_intelligence"]
    assert answer.status_code == 200
    assert results["confidence"] == 0.95
    if mode == "ok":
        assert (results["total_score"], round(transport["distance_km"], 1)) == (0.655, 6.3)
    else:
        assert (results["total_score"], transport["distance_km"]) == (0.793, 0.0)


def test_a_cold_request_makes_four_calls_and_a_warm_one_none(
    fresh_app: httpx.Client, providers: Fake
) -> None:
    """Two geocodes and two directions, remembered afterwards."""
    for _ in range(2):
        fresh_app.post(TRANSPORT, json=payload("matching_transport_request.json"))
        assert providers.calls()["google"] == {"geocode": 2, "directions": 2}


def test_its_breaker_opens_after_five_failures(fresh_app: httpx.Client, providers: Fake) -> None:
    """The second request of an outage opens it; then Google is not asked, even when it is well again."""
    providers.switch(google={"mode": "unknown_error"})
    for _ in range(2):
        fresh_app.post(MATCHING, json=payload("matching_request.json"))
    calls = providers.calls()["google"]
    assert sum(calls.values()) == 5
    providers.switch(google={"mode": "ok"})
    answer = fresh_app.post(MATCHING, json=payload("matching_request.json"))
    assert answer.json()["transport_intelligence"]["distance_km"] == 0.0
    assert providers.calls()["google"] == calls


def test_a_cv_is_read_by_openai(app: httpx.Client, providers: Fake) -> None:
    """OpenAI is asked twice, then Google with what it read."""
    answer = app.post(INTELLIGENT, files={**CV, **JOB}, data={"pourquoi_ecoute": "Autre"})
    assert answer.status_code == 200
    assert answer.json()["candidate_profile"]["name"] == "Marie Dupont"
    assert answer.json()["job"]["location"] == "Tour First, 92400 Courbevoie"
    assert answer.json()["transport_intelligence"]["distance_km"] > 6
    assert providers.calls()["openai"] == {"chat": 2}


@pytest.mark.parametrize("mode", ["fail", "quota", "denied", "reset", "truncate"])
def test_openai_down_is_hidden_behind_an_invented_profile(
    app: httpx.Client, providers: Fake, mode: str
) -> None:
    """A candidate who never was is matched, with 200."""
    providers.switch(openai={"mode": mode})
    answer = app.post(INTELLIGENT, files=CV, data={"pourquoi_ecoute": "Autre"})
    assert answer.status_code == 200
    assert answer.json()["candidate_profile"]["name"] == "Candidat Exemple"


def test_it_stands_still_while_openai_answers(app: httpx.Client, providers: Fake) -> None:
    """The blocking client holds up every other request, the health check too."""
    providers.switch(openai={"mode": "slow", "delay": 0.4})
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(app.post, INTELLIGENT, files=CV, data={"pourquoi_ecoute": "Autre"})
        while providers.calls()["openai"]["chat"] == 0:
            time.sleep(0.01)
        assert app.get("/health").elapsed.total_seconds() > 0.3
        assert reading.result().status_code == 200


@pytest.mark.parametrize("path", ["/health", "/api/v1/health", "/api/v2/maps/health", "/api/v3/health"])
def test_its_health_checks_check_nothing(app: httpx.Client, providers: Fake, path: str) -> None:
    """Healthy, whatever is down."""
    providers.switch(google={"mode": "fail"}, openai={"mode": "fail"})
    assert app.get(path).json()["status"] == "healthy"


def test_compatibility_is_constants(app: httpx.Client, providers: Fake) -> None:
    """The transport check asks nobody."""
    answer = app.post("/api/v2/transport/compatibility", json=payload("transport_compatibility_request.json"))
    assert answer.json()["compatibility"]["is_compatible"] is True
    assert providers.calls()["google"] == {"geocode": 0, "directions": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (MATCHING, {}),
        (MATCHING, {**payload("matching_request.json"), "preferences": "many"}),
        (TRANSPORT, []),
        ("/api/v2/transport/compatibility", {"job_address": "Paris"}),
        (INTELLIGENT, {}),
    ],
)
def test_a_bad_body_is_422(app: httpx.Client, path: str, body: object) -> None:
    """What is missing or of another type is refused."""
    assert app.post(path, json=body).status_code == 422


@pytest.mark.parametrize("file", [("cv.exe", b"MZ"), ("cv.txt", b"")])
def test_a_bad_file_is_400(app: httpx.Client, file: tuple[str, bytes]) -> None:
    """Files that are no documents, or empty, are refused."""
    answer = app.post(INTELLIGENT, files={"cv_file": file}, data={"pourquoi_ecoute": "Autre"})
    assert answer.status_code == 400


def test_the_demo_can_make_it_answer_503(app: httpx.Client) -> None:
    """In a burst everything is 503; after it, and after "ok", all is as before."""
    app.post("/_fault", json={"mode": "burst503", "every": 60, "for": 60})
    assert app.get("/health").status_code == 503
    app.post("/_fault", json={"mode": "burst503", "every": 60, "for": 0})
    assert app.get("/health").status_code == 200
    app.post("/_fault", json={"mode": "ok"})
    assert app.get("/health").status_code == 200


def test_the_demo_can_make_it_hang(app: httpx.Client) -> None:
    """One in so many requests is never answered, the others are."""
    app.post("/_fault", json={"mode": "hang", "one_in": 3})
    assert [app.get("/health").status_code for _ in range(2)] == [200, 200]
    with pytest.raises(httpx.ReadTimeout):
        app.get("/health", timeout=0.3)
    assert app.get("/health").status_code == 200


@pytest.mark.parametrize("fault", [{"mode": "explode"}, {"mode": "hang", "one_in": 0}, "hang"])
def test_a_wrong_fault_is_refused(app: httpx.Client, fault: object) -> None:
    """What the switch does not know is 422."""
    assert app.post("/_fault", json=fault).status_code == 422
