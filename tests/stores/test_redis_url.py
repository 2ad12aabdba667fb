"""What a URL of the shared store says, and what is said of one that says nothing."""

from __future__ import annotations

import pytest

from sidecar.stores.redis_url import Login, Place, Topology, parse


@pytest.mark.parametrize(
    ("url", "topology", "places", "database"),
    [
        ("redis://cache", Topology.SINGLE, [("cache", 6379)], 0),
        ("redis://cache:7000/2", Topology.SINGLE, [("cache", 7000)], 2),
        ("redis://cache?db=3", Topology.SINGLE, [("cache", 6379)], 3),
        ("valkey://[::1]:7000", Topology.SINGLE, [("::1", 7000)], 0),
        ("REDIS+sentinel://a,b:1/main/4", Topology.SENTINEL, [("a", 26379), ("b", 1)], 4),
        ("redis+cluster://a:1,b:2", Topology.CLUSTER, [("a", 1), ("b", 2)], 0),
        ("redis+cluster://a/0", Topology.CLUSTER, [("a", 6379)], 0),
    ],
)
def test_places(url: str, topology: Topology, places: list[tuple[str, int]], database: int) -> None:
    """Hosts, ports and database, with the defaults of each kind."""
    target = parse(url)
    assert target.topology is topology
    assert target.places == tuple(Place(*place) for place in places)
    assert target.database == database
    assert target.tls is None


def test_unix() -> None:
    """A path, with a database as an option."""
    target = parse("unix:///run/a%20b/valkey.sock?db=1&password=p")
    assert target.places == (Place("", 0, "/run/a b/valkey.sock"),)
    assert (target.database, target.login) == (1, Login("", "p"))


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("redis://u:p%40ss@h", Login("u", "p@ss")),
        ("redis://:p:q@h", Login("", "p:q")),
        ("redis://h?username=u&password=p", Login("u", "p")),
        ("redis+sentinel://u:p@h/main?sentinel_password=s", Login("u", "p")),
    ],
)
def test_logins(url: str, login: Login) -> None:
    """In front of the host or as options."""
    assert parse(url).login == login


def test_sentinels_have_a_login_of_their_own() -> None:
    """It is not the server's."""
    target = parse("redis+sentinel://:p@h/main?sentinel_username=u&sentinel_password=s")
    assert (target.service, target.sentinel_login) == ("main", Login("u", "s"))


@pytest.mark.parametrize("url", ["rediss://h", "valkeys://h", "rediss+cluster://h", "rediss+sentinel://h/m"])
def test_tls(url: str) -> None:
    """With the second s, certificates are checked."""
    target = parse(url)
    assert target.tls is not None
    assert target.tls.check_hostname


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("localhost:6379", "no scheme"),
        ("http://h", "none of redis"),
        ("redis+other://h", "none of redis"),
        ("redis://", "no host"),
        ("redis://h:port", "malformed"),
        ("redis://h:99999", "malformed"),
        ("redis://a,b", "several hosts"),
        ("redis://h/one", "a number"),
        ("redis://h/1/2", "a number"),
        ("redis://h?timeout=1", "unknown option timeout"),
        ("redis+sentinel://h", "names no service"),
        ("redis+cluster://h/1", "only database 0"),
        ("unix://relative", "unix:///path"),
        ("rediss://h?ssl_ca_certs=/none/such", "certificate file"),
        ("rediss://h?ssl_cert_reqs=maybe", "required or none"),
    ],
)
def test_mistakes(url: str, problem: str) -> None:
    """Each is a ValueError that says what is wrong."""
    with pytest.raises(ValueError, match=problem):
        parse(url)


@pytest.mark.parametrize("url", ["redis://user:secret@h", "redis+sentinel://h/m?sentinel_password=secret"])
def test_no_secret_is_shown(url: str) -> None:
    """Neither by `repr` nor by `str`."""
    target = parse(url)
    assert "secret" not in repr(target) + str(target)
