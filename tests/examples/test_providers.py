"""The fake providers answer as the real ones do, and fail as they are told."""

from __future__ import annotations

import json
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.examples.conftest import payload, program

if TYPE_CHECKING:
    from tests.examples.conftest import Fake

TLS = Path(__file__).parent / "tls"


@pytest.mark.parametrize(
    ("address", "sample"),
    [
        ("Paris", "google_geocode_reply.json"),
        ("13 Rue du Champ de Mars, 75007 Paris", "google_geocode_champ_de_mars_reply.json"),
        ("Tour First, 92400 Courbevoie", "google_geocode_courbevoie_reply.json"),
    ],
)
def test_a_known_address_gets_its_sample(providers: Fake, address: str, sample: str) -> None:
    """The addresses of the sample requests are where the sample replies say."""
    assert providers.geocode(address).json() == payload(sample)


def test_any_other_address_has_a_place_of_its_own(providers: Fake) -> None:
    """An address is near Paris, always at the same place, and not at another's; case and blanks aside."""
    one, same, other = (
        providers.geocode(address).json()["results"][0]["geometry"]["location"]
        for address in ("5 Rue X, Paris", " 5  rue x, PARIS", "6 Rue X, Paris")
    )
    assert one == same != other
    for place in (one, other):
        assert 48.7 < place["lat"] < 49.1
        assert 2.1 < place["lng"] < 2.6


@pytest.mark.parametrize("mode", ["driving", "transit"])
def test_the_way_to_courbevoie_is_the_sample(providers: Fake, mode: str) -> None:
    """Directions to the sample's destination are the sample's."""
    reply = providers.directions(origin="48.8566,2.3522", destination="48.8886451,2.2506221", mode=mode)
    assert reply.json() == payload(f"google_directions_{mode}_reply.json")


def test_a_longer_way_takes_longer(providers: Fake) -> None:
    """Distance and duration grow together with the way."""
    near, far = (
        providers.directions(origin="48.85,2.35", destination=to).json()["routes"][0]["legs"][0]
        for to in ("48.86,2.36", "48.95,2.5")
    )
    assert near["distance"]["value"] < far["distance"]["value"]
    assert near["duration"]["value"] < far["duration"]["value"]


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        ("quota", "OVER_QUERY_LIMIT"),
        ("daily_quota", "OVER_QUERY_LIMIT"),
        ("denied", "REQUEST_DENIED"),
        ("zero_results", "ZERO_RESULTS"),
        ("unknown_error", "UNKNOWN_ERROR"),
    ],
)
def test_googles_errors_come_in_a_200(providers: Fake, mode: str, status: str) -> None:
    """Google says what is wrong in the body only."""
    providers.switch(google={"mode": mode})
    reply = providers.geocode("Paris")
    assert (reply.status_code, reply.json()["status"], reply.json()["results"]) == (200, status, [])
    assert ("daily" in reply.json().get("error_message", "")) == (mode == "daily_quota")


@pytest.mark.parametrize(
    ("query", "status"), [({"key": ""}, "REQUEST_DENIED"), ({"address": ""}, "INVALID_REQUEST")]
)
def test_google_minds_what_it_is_asked(providers: Fake, query: dict[str, str], status: str) -> None:
    """No key and no address are errors."""
    reply = providers.http.get("/maps/api/geocode/json", params={"address": "Paris", "key": "k", **query})
    assert reply.json()["status"] == status


def test_google_fails_with_a_5xx(providers: Fake) -> None:
    """Mode "fail" is a server error."""
    providers.switch(google={"mode": "fail"})
    assert providers.geocode("Paris").status_code == 500


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        ("reset", httpx.ReadError),
        ("truncate", httpx.RemoteProtocolError),
        ("hang", httpx.ReadTimeout),
    ],
)
@pytest.mark.parametrize("provider", ["google", "openai"])
def test_a_connection_breaks(providers: Fake, provider: str, mode: str, error: type[Exception]) -> None:
    """Reset: nothing comes. Truncate: less comes than was announced. Hang: the client gives up."""
    providers.switch(**{provider: {"mode": mode}})
    providers.http.timeout = httpx.Timeout(0.3)
    try:
        with pytest.raises(error):
            providers.geocode("Paris") if provider == "google" else providers.chat()
    finally:
        providers.http.timeout = httpx.Timeout(10)


def test_slow_answers_come_late(providers: Fake) -> None:
    """Mode "slow" gives the usual answer, after the delay."""
    providers.switch(google={"mode": "slow", "delay": 0.2})
    reply = providers.geocode("Paris")
    assert reply.json()["status"] == "OK"
    assert reply.elapsed.total_seconds() >= 0.2


def test_a_share_of_the_calls_fails(providers: Fake) -> None:
    """A mode with a share strikes that part of the calls, evenly spread."""
    providers.switch(google={"mode": "fail", "share": 0.25})
    statuses = [providers.geocode("Paris").status_code for _ in range(8)]
    assert statuses == [200, 200, 200, 500] * 2


@pytest.mark.parametrize(
    ("prompt", "sample"),
    [
        ("Lis ce CV", "openai_chat_cv_reply.json"),
        ("Lis cette fiche de poste", "openai_chat_job_reply.json"),
        ("Lis ce CV: nom_complet, …", "openai_chat_cv_v31_reply.json"),
        ("Lis: titre_poste, …", "openai_chat_job_v31_reply.json"),
    ],
)
def test_openai_reads_what_the_prompt_is_about(providers: Fake, prompt: str, sample: str) -> None:
    """A completion is the sample for a CV or a job, in the version asked for."""
    assert providers.chat(prompt).json() == payload(sample)


def test_a_streamed_completion_adds_up(providers: Fake) -> None:
    """The chunks of a stream, ended by [DONE], make up the content of the plain reply."""
    reply = providers.chat(stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events.pop() == "[DONE]"
    choices = [json.loads(event)["choices"][0] for event in events]
    content = "".join(choice["delta"].get("content", "") for choice in choices)
    assert content == payload("openai_chat_cv_reply.json")["choices"][0]["message"]["content"]
    assert choices[-1]["finish_reason"] == "stop"


def test_a_stream_can_break_off(providers: Fake) -> None:
    """A truncated stream ends without [DONE] and without a proper end."""
    providers.switch(openai={"mode": "truncate"})
    with pytest.raises(httpx.RemoteProtocolError):
        providers.chat(stream=True)


@pytest.mark.parametrize(
    ("mode", "status", "code"),
    [
        ("denied", 401, "invalid_api_key"),
        ("quota", 429, "rate_limit_exceeded"),
        ("daily_quota", 429, "insufficient_quota"),
        ("fail", 500, None),
    ],
)
def test_openais_errors_have_their_status(providers: Fake, mode: str, status: int, code: Any) -> None:
    """OpenAI says what is wrong in the status, and by a code in the body; too fast comes with a wait."""
    providers.switch(openai={"mode": mode})
    reply = providers.chat()
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.headers.get("retry-after") == ("6" if mode == "quota" else None)


def test_openai_has_a_quota(providers: Fake) -> None:
    """Beyond it calls are refused until the window ends; every answer says what is left, and when that is."""
    providers.switch(openai={"quota": {"requests": 2, "seconds": 0.5}})
    replies = [providers.chat(), providers.chat(stream=True), providers.chat()]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert all(reply.headers["x-ratelimit-limit-requests"] == "2" for reply in replies)
    assert all(0 < int(reply.headers["x-ratelimit-reset-requests"][:-2]) <= 500 for reply in replies)
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"
    assert replies[2].headers["retry-after"] == "1"
    assert providers.calls()["openai"] == {"chat": 3, "refused": 1}
    time.sleep(float(replies[2].headers["retry-after-ms"]) / 1000 + 0.05)
    assert providers.chat().status_code == 200


def test_google_has_a_quota_and_says_nothing_of_it(providers: Fake) -> None:
    """Beyond it calls are OVER_QUERY_LIMIT, in a 200 and without a header."""
    providers.switch(google={"quota": {"requests": 2, "seconds": 60}})
    replies = [providers.geocode("Paris") for _ in range(3)]
    assert [reply.json()["status"] for reply in replies] == ["OK", "OK", "OVER_QUERY_LIMIT"]
    assert not any("ratelimit" in name or name == "retry-after" for name in replies[2].headers)


@pytest.mark.parametrize(
    "switch",
    [
        {"google": {"mode": "nonsense"}},
        {"openai": {"quota": {"requests": 0, "seconds": 1}}},
        {"openai": {"quota": {"requests": 1, "seconds": 1, "burst": 2}}},
        {"openai": {"mode": "zero_results"}},
        {"google": {"mode": "fail", "share": 2}},
        {"gogle": {"mode": "ok"}},
        [],
    ],
)
def test_a_wrong_switch_is_refused(providers: Fake, switch: object) -> None:
    """What the switch does not know changes nothing."""
    assert providers.http.post("/_switch", json=switch).status_code == 422
    assert providers.geocode("Paris").json()["status"] == "OK"


def test_calls_are_counted(providers: Fake) -> None:
    """Each endpoint has its count, failures included."""
    providers.geocode("Paris")
    providers.directions(origin="Paris", destination="Tour First")
    providers.switch(openai={"mode": "fail"})
    providers.chat()
    assert providers.calls() == {"google": {"geocode": 1, "directions": 1}, "openai": {"chat": 1}}


def test_it_serves_tls() -> None:
    """With a certificate the same is served over TLS."""
    trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
    files = ("--cert", str(TLS / "localhost.pem"), "--key", str(TLS / "localhost.key"))
    with program("providers.py", *files) as address, httpx.Client(verify=trusted) as client:
        reply = client.get(
            f"https://{address}/maps/api/geocode/json", params={"address": "Paris", "key": "k"}
        )
    assert reply.json()["status"] == "OK"
