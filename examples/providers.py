"""Google Maps and OpenAI, as far as the sample app calls them: their formats, on one server.

    python examples/providers.py --port 9000 [--cert FILE --key FILE] [--close]

    GET  /maps/api/geocode/json?address=…&key=…
    GET  /maps/api/directions/json?origin=…&destination=…&mode=…&key=…
    POST /v1/chat/completions                  streamed when the body says `"stream": true`
    POST /_switch   {"google": {"mode": "slow", "delay": 2, "share": 0.5}, "openai": {"mode": "ok"}}
                    {"openai": {"quota": {"requests": 60, "seconds": 60}}}
    GET  /_calls    how often each was called, and with a quota, refused; DELETE sets the counts to zero

Any address has its place, always the same; the addresses of the sample payloads have theirs. Modes:

    ok, slow (the answer comes `delay` seconds late, 2 when not said), fail (5xx), quota (too fast),
    daily_quota, denied, reset (the connection is), hang (no answer ever), truncate (half a body);
    for Google also zero_results and unknown_error.

`share` is the part of the calls a mode is for, evenly spread; `delay` goes before any mode's answer.
Google's errors are 200 with a `status` in the body, as Google has it; OpenAI's are 401, 429 and 500.

SIGHUP reads the certificate anew. With --close a connection serves one request, and a handshake resumes no
session: each call looks its name up, and checks the certificate.

`quota` is so many requests in each window of so many seconds, from the first request on; a call beyond is
answered as in mode "quota". OpenAI's answers then say what is left, in
`x-ratelimit-{limit,remaining,reset}-requests`, and its refusals when to come back; Google says neither.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import signal
import socket
import ssl
import struct
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from collections.abc import Callable

PAYLOADS = Path(__file__).parent / "payloads"
GOOGLE_MODES = (
    "ok slow fail quota daily_quota denied zero_results unknown_error reset hang truncate".split()  # noqa: SIM905
)
OPENAI_MODES = [mode for mode in GOOGLE_MODES if mode not in {"zero_results", "unknown_error"}]
KNOWN_ADDRESSES = {
    "paris": "google_geocode_reply.json",
    "paris, france": "google_geocode_reply.json",
}
KNOWN_PLACES = {
    "vendôme": "google_geocode_reply.json",
    "champ de mars": "google_geocode_champ_de_mars_reply.json",
    "tour first": "google_geocode_courbevoie_reply.json",
}
"""Sample replies by a part of the address."""
COURBEVOIE = (48.8886451, 2.2506221)
SLOW_SECONDS = 2.0


class Quota(BaseModel, extra="forbid"):
    """So many requests in so many seconds."""

    requests: int = Field(ge=1)
    seconds: float = Field(gt=0)


class Provider(BaseModel):
    """How one of the two behaves."""

    mode: str = "ok"
    delay: float = Field(default=0.0, ge=0)
    share: float = Field(default=1.0, ge=0, le=1)
    quota: Quota | None = None

    @model_validator(mode="after")
    def slow_by_default(self) -> Provider:
        if self.mode == "slow" and "delay" not in self.model_fields_set:
            self.delay = SLOW_SECONDS
        return self


class Google(Provider):
    @model_validator(mode="after")
    def known_mode(self) -> Google:
        if self.mode not in GOOGLE_MODES:
            raise ValueError(f"mode is one of {', '.join(GOOGLE_MODES)}")
        return self


class OpenAI(Provider):
    @model_validator(mode="after")
    def known_mode(self) -> OpenAI:
        if self.mode not in OPENAI_MODES:
            raise ValueError(f"mode is one of {', '.join(OPENAI_MODES)}")
        return self


class Switch(BaseModel, extra="forbid"):
    google: Google | None = None
    openai: OpenAI | None = None


@cache
def text_of(name: str) -> str:
    return (PAYLOADS / name).read_text("utf-8")


def payload(name: str) -> Any:
    return json.loads(text_of(name))


# -- Google Maps -----------------------------------------------------------------------------------


def geocode(address: str) -> dict[str, Any]:
    """The reply for an address: a sample's, or one made up from the address alone."""
    folded = " ".join(address.lower().split())
    name = KNOWN_ADDRESSES.get(folded) or next(
        (name for part, name in KNOWN_PLACES.items() if part in folded), None
    )
    if name is not None:
        known: dict[str, Any] = payload(name)
        return known
    digest = hashlib.sha256(folded.encode()).digest()
    north, east = (int.from_bytes(digest[i : i + 4], "big") / 2**32 for i in (0, 4))
    lat, lng = round(48.75 + 0.25 * north, 7), round(2.15 + 0.4 * east, 7)
    reply: dict[str, Any] = payload("google_geocode_reply.json")
    result = reply["results"][0]
    result["formatted_address"] = f"{address.strip()}, France"
    result["address_components"] = [
        {"long_name": address.strip(), "short_name": address.strip(), "types": ["route"]},
        {"long_name": "France", "short_name": "FR", "types": ["country", "political"]},
    ]
    result["geometry"] = {
        "location": {"lat": lat, "lng": lng},
        "location_type": "APPROXIMATE",
        "viewport": {
            "northeast": {"lat": round(lat + 0.0013, 7), "lng": round(lng + 0.0013, 7)},
            "southwest": {"lat": round(lat - 0.0013, 7), "lng": round(lng - 0.0013, 7)},
        },
    }
    result["place_id"] = f"ChIJ{digest.hex()[:23]}"
    return reply


def place(text: str) -> tuple[float, float]:
    """Coordinates as `lat,lng`, or those of an address."""
    try:
        lat, lng = map(float, text.split(","))
    except ValueError:
        location = geocode(text)["results"][0]["geometry"]["location"]
        return location["lat"], location["lng"]
    return lat, lng


def directions(origin: tuple[float, float], destination: tuple[float, float], mode: str) -> dict[str, Any]:
    """The sample's reply for the way to Courbevoie; any other way is its own length, at the same speeds."""
    name = "transit" if mode == "transit" else "driving"
    reply: dict[str, Any] = payload(f"google_directions_{name}_reply.json")
    if max(abs(destination[0] - COURBEVOIE[0]), abs(destination[1] - COURBEVOIE[1])) < 0.001:
        return reply
    north = (destination[0] - origin[0]) * 111.2
    east = (destination[1] - origin[1]) * 111.2 * math.cos(math.radians(origin[0]))
    metres = round(math.hypot(north, east) * 1300)
    leg = reply["routes"][0]["legs"][0]
    factor = metres / leg["distance"]["value"]
    leg["distance"] = {"text": f"{metres / 1000:.1f} km".replace(".", ","), "value": metres}
    for key in ("duration", "duration_in_traffic"):
        if key in leg:
            seconds = round(leg[key]["value"] * factor)
            leg[key] = {"text": f"{max(1, round(seconds / 60))} min", "value": seconds}
    for key, (lat, lng) in (("start", origin), ("end", destination)):
        leg[f"{key}_location"] = {"lat": lat, "lng": lng}
        leg[f"{key}_address"] = f"{lat},{lng}"
    return reply


def google_error(mode: str, listed: str) -> dict[str, Any] | None:
    """What Google puts in the body of a 200; None when the mode is not an error of that kind."""
    if mode == "daily_quota":
        reply = payload("google_quota_reply.json")
    elif mode == "denied":
        reply = payload("google_denied_reply.json")
    elif mode == "zero_results":
        reply = payload("google_zero_results_reply.json")
    elif mode == "quota":
        reply = {
            "error_message": "You have exceeded your rate-limit for this API.",
            "results": [],
            "status": "OVER_QUERY_LIMIT",
        }
    elif mode == "unknown_error":
        reply = {"results": [], "status": "UNKNOWN_ERROR"}
    else:
        return None
    del reply["results"]
    return {**reply, listed: []}


# -- OpenAI ----------------------------------------------------------------------------------------


def completion(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The sample's reply: for a job where the prompt is about one, for a CV otherwise."""
    text = json.dumps(messages, ensure_ascii=False).lower()
    about_a_job = any(words in text for words in ("fiche de poste", "job description", "titre_poste"))
    kind = "job" if about_a_job else "cv"
    version = "_v31" if "nom_complet" in text or "titre_poste" in text else ""
    reply: dict[str, Any] = payload(f"openai_chat_{kind}{version}_reply.json")
    return reply


def chunks(reply: dict[str, Any]) -> list[dict[str, Any]]:
    """A completion as the chunks of a stream."""
    base = {key: reply[key] for key in ("id", "created", "model", "system_fingerprint")}
    base["object"] = "chat.completion.chunk"
    content = reply["choices"][0]["message"]["content"]
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": content[at : at + 24]} for at in range(0, len(content), 24)]
    events = [{**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    return [*events, {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]


def openai_error(mode: str) -> web.Response | None:
    if mode == "denied":
        return web.json_response(payload("openai_error_401_reply.json"), status=401)
    if mode == "quota":
        reply = payload("openai_error_429_reply.json")
        return web.json_response(reply, status=429, headers={"Retry-After": "6"})
    if mode == "daily_quota":
        error = {
            "message": "You exceeded your current quota, please check your plan and billing details.",
            "type": "insufficient_quota",
            "param": None,
            "code": "insufficient_quota",
        }
        return web.json_response({"error": error}, status=429)
    if mode == "fail":
        error = {
            "message": "The server had an error while processing your request. Sorry about that!",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        return web.json_response({"error": error}, status=500)
    return None


# -- the server ------------------------------------------------------------------------------------


class Window:
    """Counts the requests of a quota."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.ends = -math.inf
        self.left = 0

    def admit(self) -> bool:
        now = time.monotonic()
        if now >= self.ends:
            seconds = self.quota.seconds
            # One window follows another; after a rest the next request begins one.
            self.ends = self.ends + seconds if now < self.ends + seconds else now + seconds
            self.left = self.quota.requests
        if not self.left:
            return False
        self.left -= 1
        return True

    def headers(self, *, refused: bool) -> dict[str, str]:
        """As OpenAI tells it."""
        reset = max(self.ends - time.monotonic(), 0.0)
        told = {
            "x-ratelimit-limit-requests": str(self.quota.requests),
            "x-ratelimit-remaining-requests": str(self.left),
            "x-ratelimit-reset-requests": span(reset),
        }
        if refused:
            told["Retry-After"] = str(max(1, math.ceil(reset)))
            told["retry-after-ms"] = f"{reset * 1000:.0f}"
        return told


def span(seconds: float) -> str:
    """A time as Go writes it: `6m0s`, `1.5s`, `20ms`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{minutes:.0f}m{text}s" if minutes else f"{text}s"


class Providers:
    """Both providers' state: how they behave, and how often they were called."""

    def __init__(self) -> None:
        self.google = Google()
        self.openai = OpenAI()
        self.calls = {"google": {"geocode": 0, "directions": 0}, "openai": {"chat": 0}}
        self.since_switch = {"google": 0, "openai": 0}
        self.refused = {"google": 0, "openai": 0}
        self.windows: dict[str, Window] = {}

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/maps/api/geocode/json", self.geocode)
        app.router.add_get("/maps/api/directions/json", self.directions)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/_switch", self.switch)
        app.router.add_get("/_calls", self.report)
        app.router.add_delete("/_calls", self.forget)
        return app

    async def geocode(self, request: web.Request) -> web.StreamResponse:
        address = request.query.get("address", "")
        return await self._google(request, "geocode", "results", address, lambda: geocode(address))

    async def directions(self, request: web.Request) -> web.StreamResponse:
        origin, destination = request.query.get("origin", ""), request.query.get("destination", "")
        return await self._google(
            request,
            "directions",
            "routes",
            origin and destination,
            lambda: directions(place(origin), place(destination), request.query.get("mode", "driving")),
        )

    async def _google(
        self, request: web.Request, call: str, listed: str, asked: str, answer: Callable[[], dict[str, Any]]
    ) -> web.StreamResponse:
        self.calls["google"][call] += 1
        mode = await self._mode("google", self.google)
        if not self._admit("google"):
            mode = "quota"
        if mode == "fail":
            return web.Response(status=500, text="<html><title>Error 500 (Server Error)!!1</title></html>")
        body = google_error(mode, listed)
        if body is None and not request.query.get("key"):
            body = google_error("denied", listed)
        if body is None and not asked:
            body = {"error_message": "Invalid request.", listed: [], "status": "INVALID_REQUEST"}
        return await self._send(request, mode, web.json_response(body or answer()))

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.calls["openai"]["chat"] += 1
        mode = await self._mode("openai", self.openai)
        refused = not self._admit("openai")
        error = openai_error("quota" if refused else mode)
        window = self.windows.get("openai")
        told = window.headers(refused=refused) if window is not None else {}
        if error is None and not request.headers.get("Authorization", "").startswith("Bearer "):
            error = openai_error("denied")
        if error is not None:
            error.headers.update(told)
            return error
        try:
            body = await request.json()
            reply = completion(body["messages"])
        except (ValueError, LookupError, TypeError):
            message = {"message": "We could not parse the JSON body of your request.", "code": None}
            return web.json_response({"error": {**message, "type": "invalid_request_error"}}, status=400)
        if body.get("stream"):
            return await self._stream(request, mode, chunks(reply), told)
        return await self._send(request, mode, web.json_response(reply, headers=told))

    def _admit(self, name: str) -> bool:
        window = self.windows.get(name)
        if window is None or window.admit():
            return True
        self.refused[name] += 1
        return False

    async def _mode(self, name: str, provider: Provider) -> str:
        """The mode this call is in, after its delay."""
        seen = self.since_switch[name]
        self.since_switch[name] += 1
        if math.floor((seen + 1) * provider.share + 1e-9) == math.floor(seen * provider.share + 1e-9):
            return "ok"
        await asyncio.sleep(provider.delay)
        return provider.mode

    async def _send(self, request: web.Request, mode: str, response: web.Response) -> web.StreamResponse:
        """Sends the response, unless the mode breaks the connection."""
        if mode == "hang":
            await asyncio.Event().wait()  # ends when the client leaves: the handler is cancelled then
        if mode == "reset":
            reset(request)
        if mode == "truncate":
            content = response.body
            if not isinstance(content, bytes):
                raise TypeError("only a plain body can be truncated")
            half = web.StreamResponse(headers={"Content-Type": "application/json"})
            half.content_length = len(content)
            await half.prepare(request)
            await half.write(content[: len(content) // 2])
            cut(request)
            return half
        return response

    async def _stream(
        self, request: web.Request, mode: str, events: list[dict[str, Any]], told: dict[str, str]
    ) -> web.StreamResponse:
        """Server-sent events, ended by `[DONE]`; "hang" and "truncate" strike half-way."""
        if mode == "reset":
            reset(request)
            return web.Response()
        kind = {"Content-Type": "text/event-stream; charset=utf-8"}
        response = web.StreamResponse(headers={**kind, **told})
        await response.prepare(request)
        for number, event in enumerate(events):
            if mode in {"hang", "truncate"} and number == len(events) // 2:
                if mode == "hang":
                    await asyncio.Event().wait()
                cut(request)
                return response
            await response.write(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def switch(self, request: web.Request) -> web.Response:
        try:
            wanted = Switch.model_validate_json(await request.read())
        except ValidationError as error:
            found = json.loads(error.json(include_url=False, include_context=False))
            return web.json_response({"errors": found}, status=422)
        if wanted.google is not None:
            self.google = wanted.google
            self._begin("google", wanted.google)
        if wanted.openai is not None:
            self.openai = wanted.openai
            self._begin("openai", wanted.openai)
        return web.json_response({"google": self.google.model_dump(), "openai": self.openai.model_dump()})

    def _begin(self, name: str, provider: Provider) -> None:
        self.since_switch[name] = 0
        self.windows.pop(name, None)
        if provider.quota is not None:
            self.windows[name] = Window(provider.quota)

    async def report(self, _request: web.Request) -> web.Response:
        calls = {name: dict(calls) for name, calls in self.calls.items()}
        for name in self.windows:
            calls[name]["refused"] = self.refused[name]
        return web.json_response(calls)

    async def forget(self, request: web.Request) -> web.Response:
        self.calls = {name: dict.fromkeys(calls, 0) for name, calls in self.calls.items()}
        self.refused = dict.fromkeys(self.refused, 0)
        return await self.report(request)


def reset(request: web.Request) -> None:
    """Ends the connection with a TCP RST; what is sent on it afterwards goes nowhere."""
    transport = request.transport
    if transport is not None:
        raw = transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


def cut(request: web.Request) -> None:
    """Ends the connection after what was sent, as if that had been all."""
    if request.transport is not None:
        request.transport.close()


def tls_context(cert: str | None, key: str | None, *, resumes: bool) -> ssl.SSLContext | None:
    if cert is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if not resumes:
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET
    context.load_cert_chain(cert, key)
    return context


async def close(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Connection"] = "close"
    response.force_close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Google Maps and OpenAI, fake.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--cert", help="PEM file: serve TLS")
    parser.add_argument("--key", help="PEM file, where the certificate's file has no key")
    parser.add_argument("--close", action="store_true", help="a connection serves one request")
    options = parser.parse_args()
    context = tls_context(options.cert, options.key, resumes=not options.close)
    application = Providers().application()
    if options.close:
        application.on_response_prepare.append(close)
    if context is not None:

        async def reloading(_app: web.Application) -> None:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGHUP, context.load_cert_chain, options.cert, options.key)

        application.on_startup.append(reloading)
    web.run_app(
        application,
        host=options.host,
        port=options.port,
        ssl_context=context,
        access_log=None,
        print=None,
        handler_cancellation=True,
        shutdown_timeout=1.0,
    )


if __name__ == "__main__":
    main()
