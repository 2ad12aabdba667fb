"""`sidecar ca`, and what `routes` and `explain` say of the app's own calls."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sidecar.cli import main

POLICY = """\
name: maps
direction: egress
hosts: [maps.googleapis.com, "routes.googleapis.com:8443"]
takeover: 127.0.0.1:5053
upstream: https://maps.googleapis.com
routes:
  - name: geocode
    match: {path: "/maps/api/geocode/*", host: maps.googleapis.com}
    cache: {namespace: geocoding, key: {query: {drop: [key]}}}
"""
MAIN = """\
listen: {egress: "127.0.0.1:8181", intercept: "127.0.0.1:443"}
policies: [maps.yaml]
"""


@pytest.fixture(autouse=True)
def _maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("NEXTVISION_ENV", "LOG_LEVEL", "REDIS_URL", "REDIS_HOST", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    Path("sidecar.yaml").write_text(MAIN, encoding="utf-8")
    Path("maps.yaml").write_text(POLICY, encoding="utf-8")


def test_it_makes_the_ca_and_prints_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exact lines, with whole paths; a second call makes nothing anew."""
    assert main(["ca"]) == 0
    first = capsys.readouterr()
    assert first.err == ""
    lines = first.out.splitlines()
    folder = tmp_path / ".sidecar" / "ca"
    assert [line for line in lines if not line.startswith("#")] == [
        f"export SSL_CERT_FILE={folder}/bundle.pem",
        f"export REQUESTS_CA_BUNDLE={folder}/bundle.pem",
        f"export CURL_CA_BUNDLE={folder}/bundle.pem",
        f"export NODE_EXTRA_CA_CERTS={folder}/ca.pem",
    ]
    proxy = "http://127.0.0.1:8181"
    assert f"# export HTTP_PROXY={proxy} HTTPS_PROXY={proxy} NO_PROXY=localhost,127.0.0.1" in lines
    assert "# 127.0.0.1 maps.googleapis.com" in lines
    key = (folder / "ca.key").read_bytes()
    assert main(["ca"]) == 0
    assert capsys.readouterr() == first
    assert (folder / "ca.key").read_bytes() == key


def test_it_rotates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A new key, and it says what that means for clients."""
    main(["ca"])
    key = (tmp_path / ".sidecar/ca/ca.key").read_bytes()
    capsys.readouterr()
    assert main(["ca", "rotate"]) == 0
    assert "a new key" in capsys.readouterr().err
    assert (tmp_path / ".sidecar/ca/ca.key").read_bytes() != key


def test_it_copies_the_bundle(tmp_path: Path) -> None:
    """`--bundle` writes it where others may read it."""
    assert main(["ca", "--bundle", "copy.pem"]) == 0
    assert Path("copy.pem").read_bytes() == (tmp_path / ".sidecar/ca/bundle.pem").read_bytes()


def test_its_directory_is_beside_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the command is typed."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["ca", "-c", "../sidecar.yaml"]) == 0
    assert (tmp_path / ".sidecar/ca/ca.pem").is_file()
    assert stat.S_IMODE((tmp_path / ".sidecar/ca").stat().st_mode) == 0o700


def test_without_hosts(capsys: pytest.CaptureFixture[str]) -> None:
    """There is nothing to make: exit 1."""
    Path("sidecar.yaml").write_text("{}", encoding="utf-8")
    assert main(["ca"]) == 1
    assert capsys.readouterr().err == (
        "sidecar: no policy file lists hosts, so there is nothing to intercept\n"
    )


def test_a_directory_that_cannot_be_made(capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the place and the key that says where."""
    Path("file").write_text("", encoding="utf-8")
    assert main(["ca", "--set", "ca.dir=file/ca"]) == 1
    assert capsys.readouterr().err == (
        "sidecar: file: File exists (set ca.dir to a directory that the sidecar may write to)\n"
    )


def test_routes(capsys: pytest.CaptureFixture[str]) -> None:
    """Which calls of the app a file has, where they go, and what happens to others."""
    assert main(["routes"]) == 0
    assert capsys.readouterr().out == (
        "maps (maps.yaml), the app's calls to maps.googleapis.com, routes.googleapis.com:8443, takeover "
        "127.0.0.1:5053, to https://maps.googleapis.com\n"
        "  geocode  any method maps.googleapis.com/maps/api/geocode/*  observe > cache > classify\n"
        "unmatched: all other requests, to http://127.0.0.1:8000: observe > classify\n"
        "unlisted: the app's calls to all other hosts: passed through\n"
    )


@pytest.mark.parametrize(
    ("url", "route"),
    [
        ("https://maps.googleapis.com/maps/api/geocode/json?key=x", "geocode"),
        ("http://MAPS.googleapis.com/maps/api/geocode/json", "geocode"),
        ("https://routes.googleapis.com:8443/maps/api/geocode/json", "geocode"),
        ("https://routes.googleapis.com/maps/api/geocode/json", "unmatched"),
        ("https://maps.googleapis.com/other", "maps/unmatched"),
        ("/maps/api/geocode/json", "unmatched"),
    ],
)
def test_explain(url: str, route: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A URL of a listed host is looked up among the routes of its file, others among those of the app."""
    assert main(["explain", "GET", url]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["route", route]


def test_the_cache_key_is_the_upstreams(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever URL the call is made by."""
    keys = []
    for url in ("http://maps.googleapis.com{}?key=1&x=2", "https://maps.googleapis.com{}?x=2"):
        main(["explain", "GET", url.format("/maps/api/geocode/a")])
        keys += [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache key")]
    assert keys[0] == keys[1]
    assert "geocoding:v1:maps.googleapis.com:/maps/api/geocode/a:" in keys[0]
