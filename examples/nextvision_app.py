"""Nextvision in small: scores candidates against jobs, with Google Maps and OpenAI.

    python examples/nextvision_app.py --port 8000

It knows nothing of a sidecar. What it does wrong is what the real app does, and is kept on purpose:

* Each call to Google opens a bare `aiohttp.ClientSession()` with no timeout, to a hard-coded address.
* When Google fails it answers 200 all the same: every address becomes the centre of Paris, so the
  distance is 0.0 km and the score goes up.
* OpenAI is called with a blocking client inside `async def`: the whole app stands still meanwhile.
  When OpenAI fails, the answer is 200 with an invented profile.
* Its own breaker opens after 5 failed calls to Google, for 5 minutes.
* Its health checks check nothing.

Two things are not the real app's. `NEXTVISION_MAPS_BASE` replaces the hard-coded address of Google,
so that a fake can stand in for it. `POST /_fault` and `--count-file` are the demo's switch and counter
(`faults.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import aiohttp
import requests
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from faults import FaultSwitch  # type: ignore[import-not-found]  # beside this program, wherever it is run
from pydantic import BaseModel, Field

VERSION = "3.2.1"
MAPS = os.environ.get("NEXTVISION_MAPS_BASE", "https://maps.googleapis.com/maps/api")
OPENAI = os.environ.get("OPENAI_API_BASE", "https://api.openai.com/v1")
MAPS_KEY = os.environ.get("GOOGLE_MAPS_API_KEY", "sample-maps-key")
OPENAI_KEY = os.environ.get("OPENAI_API_KEY", "sample-openai-key")

DEFAULT_JOB_ADDRESS = "13 Rue du Champ de Mars, 75007 Paris"
CV_SUFFIXES = (".pdf", ".docx", ".doc", ".txt")
EARTH_RADIUS_KM = 6371.0


class Point(NamedTuple):
    lat: float
    lng: float

    def km_to(self, other: Point) -> float:
        """Great-circle distance (haversine)."""
        lat_a, lng_a, lat_b, lng_b = map(math.radians, (*self, *other))
        half = math.sin((lat_b - lat_a) / 2) ** 2
        half += math.cos(lat_a) * math.cos(lat_b) * math.sin((lng_b - lng_a) / 2) ** 2
        return 2 * EARTH_RADIUS_KM * math.asin(math.sqrt(half))


PARIS = Point(48.8566, 2.3522)


# -- what clients send -----------------------------------------------------------------------------


class PersonalInfo(BaseModel):
    first_name: str = Field(alias="firstName")
    last_name: str = Field(alias="lastName")
    email: str = ""


class CandidateProfile(BaseModel):
    personal_info: PersonalInfo
    skills: list[str] = []
    experience_years: int = Field(default=0, ge=0)


class SalaryExpectations(BaseModel):
    min: int = Field(default=0, ge=0)
    max: int = Field(default=0, ge=0)


class LocationPreferences(BaseModel):
    city: str = "Paris"


class Preferences(BaseModel):
    salary_expectations: SalaryExpectations
    location_preferences: LocationPreferences = LocationPreferences()


class MatchingRequest(BaseModel):
    pourquoi_ecoute: str
    job_address: str = DEFAULT_JOB_ADDRESS
    candidate_profile: CandidateProfile
    preferences: Preferences


class CompatibilityRequest(BaseModel):
    candidat_address: str
    job_address: str
    transport_modes: list[str]
    max_times: dict[str, int] = {}
    telework_days: int = 0


# -- Google Maps -----------------------------------------------------------------------------------


class MapsError(Exception):
    """Google could not be asked, or did not answer OK."""


class MapsBreaker:
    """Opens after 5 failures in a row, for 5 minutes."""

    FAILURES = 5
    OPEN_SECONDS = 300.0

    def __init__(self) -> None:
        self.failures = 0
        self.opened_at = -math.inf

    @property
    def open(self) -> bool:
        return time.monotonic() - self.opened_at < self.OPEN_SECONDS

    def success(self) -> None:
        self.failures = 0

    def failure(self) -> None:
        self.failures += 1
        if self.failures >= self.FAILURES:
            self.failures = 0
            self.opened_at = time.monotonic()


class Maps:
    """Google Maps as the app asks it: what succeeded is remembered for as long as the process lives."""

    CACHE_ENTRIES = 10_000

    def __init__(self) -> None:
        self.breaker = MapsBreaker()
        self.cache: dict[tuple[str, ...], Any] = {}

    async def locate(self, address: str) -> Point:
        """Where an address is; the centre of Paris when Google does not say."""
        try:
            results = await self._ask(("geocode", address), "results", {"address": address})
            return Point(**results[0]["geometry"]["location"])
        except (MapsError, LookupError, TypeError):
            return PARIS

    async def minutes(self, origin: Point, destination: Point, mode: str) -> float | None:
        """How long the way takes, with today's traffic; None when Google does not say."""
        params = {
            "origin": f"{origin.lat},{origin.lng}",
            "destination": f"{destination.lat},{destination.lng}",
            "mode": mode,
            "departure_time": str(int(time.time())),
        }
        try:
            routes = await self._ask(
                ("directions", params["origin"], params["destination"], mode), "routes", params
            )
            leg = routes[0]["legs"][0]
            return float(leg.get("duration_in_traffic", leg["duration"])["value"]) / 60
        except (MapsError, LookupError, TypeError, ValueError):
            return None

    async def _ask(self, key: tuple[str, ...], wanted: str, params: dict[str, str]) -> Any:
        if key in self.cache:
            return self.cache[key]
        if self.breaker.open:
            raise MapsError("circuit breaker open")
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"{MAPS}/{key[0]}/json", params={**params, "key": MAPS_KEY}) as reply,
            ):
                body = await reply.json()
                if body["status"] != "OK":
                    raise MapsError(body["status"])  # noqa: TRY301  # counted as a failure below
                answer = body[wanted]
        except (aiohttp.ClientError, TimeoutError, LookupError, TypeError, ValueError, MapsError) as error:
            self.breaker.failure()
            raise MapsError(str(error)) from error
        self.breaker.success()
        if len(self.cache) >= self.CACHE_ENTRIES:
            self.cache.clear()
        self.cache[key] = answer
        return answer


# -- OpenAI ----------------------------------------------------------------------------------------


def ask_openai(instruction: str, text: str) -> dict[str, Any]:
    """One chat completion, read as JSON. Blocks; raises `OSError` or `ValueError` when it fails."""
    reply = requests.post(
        f"{OPENAI}/chat/completions",
        json={
            "model": "gpt-4",
            "temperature": 0,
            "messages": [{"role": "system", "content": instruction}, {"role": "user", "content": text}],
        },
        headers={"Authorization": f"Bearer {OPENAI_KEY}"},
        timeout=600,  # openai 0.28's own default
    )
    reply.raise_for_status()
    content = json.loads(reply.json()["choices"][0]["message"]["content"])
    if not isinstance(content, dict):
        raise TypeError("the model did not answer with a JSON object")
    return content


def read_cv(text: str) -> dict[str, Any]:
    """What is in a CV; an invented profile when OpenAI does not say."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return ask_openai("Extrais du CV un objet JSON: name, email, skills, years_of_experience…", text)
    return {
        "name": "Candidat Exemple",
        "email": "candidat@example.com",
        "skills": ["Communication", "Excel"],
        "years_of_experience": 3,
        "location": "Paris",
    }


def read_job(text: str) -> dict[str, Any]:
    """What is in a job description; an invented job when OpenAI does not say."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        return ask_openai("Extrais de la fiche de poste un objet JSON: title, company, location…", text)
    return {"title": "Poste Exemple", "company": "Entreprise", "location": DEFAULT_JOB_ADDRESS}


# -- the score -------------------------------------------------------------------------------------


def location_score(km: float) -> float:
    """1.0 up to 2.5 km, then 0.183 less for each kilometre, never under 0.1."""
    return max(0.1, min(1.0, 1.0 - 0.183 * (km - 2.5)))


def semantic_score(skills: int) -> float:
    return min(0.9, 0.424 + 0.119 * skills)


WEIGHTS = {
    "semantique": 0.25,
    "hierarchical": 0.15,
    "remuneration": 0.2,
    "experience": 0.2,
    "localisation": 0.2,
    "secteurs": 0.05,
}
REASONING = {
    "Poste trop loin de mon domicile": "Priorité à la proximité géographique",
    "Rémunération trop faible": "Priorité à la rémunération",
}


async def match(maps: Maps, candidate_id: str, body: MatchingRequest) -> dict[str, Any]:
    """The answer to a matching request: two geocodes in turn, then two directions at once."""
    started = time.perf_counter()
    profile, salary = body.candidate_profile, body.preferences.salary_expectations
    home = await maps.locate(body.preferences.location_preferences.city)
    work = await maps.locate(body.job_address)
    driving, transit = await asyncio.gather(
        maps.minutes(home, work, "driving"), maps.minutes(home, work, "transit")
    )
    km = home.km_to(work)
    estimate = km * 3  # minutes at 20 km/h, where Google gave none
    by_mode = {
        "driving": estimate if driving is None else driving,
        "transit": estimate if transit is None else transit,
    }
    mode = min(by_mode, key=by_mode.__getitem__)
    scores = {
        "semantique": round(semantic_score(len(profile.skills)), 3),
        "hierarchical": 0.75,
        "remuneration": 0.75,
        "experience": round(min(1.0, 0.4 + 0.05 * profile.experience_years), 3),
        "secteurs": 0.7,
        "localisation": round(location_score(km), 3),
    }
    return {
        "status": "success",
        "candidate_id": candidate_id,
        "matching_results": {
            "total_score": round(sum(scores[name] * weight for name, weight in WEIGHTS.items()), 3),
            "confidence": 0.95,
            "component_scores": scores,
            "weights_used": WEIGHTS,
        },
        "transport_intelligence": {
            "location_score_dynamic": True,
            "location_score_source": "google_maps_calculation",
            "location_score_value": scores["localisation"],
            "transport_mode": mode,
            "distance_km": km,
            "time_score": round(max(0.1, min(1.0, 1.0 - (by_mode[mode] - 30) / 60)), 3),
            "cost_score": 0.8,
            "comfort_score": 0.9,
        },
        "adaptive_weighting": {
            "applied": True,
            "reason": body.pourquoi_ecoute,
            "reasoning": REASONING.get(body.pourquoi_ecoute, "Pondération standard"),
            "weight_changes": {
                "semantique": {"from": 0.35, "to": 0.3, "change": -0.05, "change_percent": -14.3},
                "localisation": {"from": 0.1, "to": 0.2, "change": 0.1, "change_percent": 100.0},
            },
        },
        "candidate_summary": {
            "name": f"{profile.personal_info.first_name} {profile.personal_info.last_name}",
            "skills_count": len(profile.skills),
            "experience_years": profile.experience_years,
            "salary_range": f"{salary.min}€ - {salary.max}€",
        },
        "metadata": {
            "processing_time_ms": round((time.perf_counter() - started) * 1000, 2),
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "api_version": VERSION,
            "algorithm": "Adaptive Contextual Weighting + Transport Intelligence INTEGRATED",
        },
    }


async def text_of(upload: UploadFile) -> str:
    """The text of an uploaded file. Raises 400 for what is not a document."""
    if not (upload.filename or "").lower().endswith(CV_SUFFIXES):
        raise HTTPException(400, f"Format de fichier non supporté: {upload.filename}")
    content = await upload.read()
    if not content:
        raise HTTPException(400, f"Fichier vide: {upload.filename}")
    return content.decode("utf-8", "replace")


def application() -> FastAPI:
    """The app, with a cache and a breaker of its own."""
    app = FastAPI(title="Nextvision", version=VERSION)
    maps = Maps()

    @app.post("/api/v1/matching/candidate/{candidate_id}")
    async def matching(candidate_id: str, body: MatchingRequest) -> dict[str, Any]:
        return await match(maps, candidate_id, body)

    @app.post("/api/v3/matching/candidate/{candidate_id}/transport")
    async def matching_transport(candidate_id: str, body: MatchingRequest) -> dict[str, Any]:
        return await match(maps, candidate_id, body)

    @app.post("/api/v3/intelligent-matching")
    async def intelligent_matching(
        cv_file: Annotated[UploadFile, File()],
        pourquoi_ecoute: Annotated[str, Form()],
        job_file: Annotated[UploadFile | None, File()] = None,
    ) -> dict[str, Any]:
        cv_text = await text_of(cv_file)
        job_text = await text_of(job_file) if job_file is not None else ""
        profile = read_cv(cv_text)  # blocks the event loop, as in the real app
        job = read_job(job_text or "Poste standard")
        first_name, _, last_name = str(profile.get("name", "")).partition(" ")
        body = MatchingRequest.model_validate(
            {
                "pourquoi_ecoute": pourquoi_ecoute,
                "job_address": job.get("location") or DEFAULT_JOB_ADDRESS,
                "candidate_profile": {
                    "personal_info": {"firstName": first_name, "lastName": last_name},
                    "skills": profile.get("skills", []),
                    "experience_years": profile.get("years_of_experience", 0),
                },
                "preferences": {
                    "salary_expectations": {},
                    "location_preferences": {"city": str(profile.get("location") or "Paris").split(",")[0]},
                },
            }
        )
        answer = await match(maps, "cv", body)
        return {**answer, "candidate_profile": profile, "job": job}

    @app.post("/api/v2/transport/compatibility")
    async def compatibility(body: CompatibilityRequest) -> dict[str, Any]:
        return {
            "status": "success",
            "compatibility": {"is_compatible": True, "score": 0.8, "recommended_modes": body.transport_modes},
            "telework_days": body.telework_days,
        }

    for path in ("/health", "/api/v1/health", "/api/v2/maps/health", "/api/v3/health"):

        @app.get(path)
        async def health() -> dict[str, str]:
            return {"status": "healthy", "version": VERSION}

    count_file = os.environ.get("NEXTVISION_COUNT_FILE")
    app.add_middleware(FaultSwitch, count_file=Path(count_file) if count_file else None)
    return app


def main() -> None:
    parser = argparse.ArgumentParser(description="Nextvision in small, a sample app.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--workers", type=int, default=1, help="a fault is set in one of them only")
    parser.add_argument("--count-file", help="where to keep the number of requests received")
    options = parser.parse_args()
    if options.count_file:
        os.environ["NEXTVISION_COUNT_FILE"] = options.count_file  # the workers' too
    uvicorn.run(
        "nextvision_app:application",
        factory=True,
        app_dir=str(Path(__file__).parent),
        host=options.host,
        port=options.port,
        workers=options.workers,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=2,
    )


if __name__ == "__main__":
    main()
