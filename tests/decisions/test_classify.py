"""Rules: the first that matches gives the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.classify import STATUS_CLASSES, Judgement, Rule, Rules
from sidecar.decisions.globs import glob_covers
from sidecar.decisions.json_match import All, OneOf
from sidecar.decisions.skim import UNCLEAR
from sidecar.decisions.verdict import BY_STATUS, Verdict
from sidecar.headers import Line

OK, NEGATIVE, TRANSIENT = Verdict.OK, Verdict.NEGATIVE, Verdict.TRANSIENT
RATE_LIMITED, QUOTA, AUTH = Verdict.RATE_LIMITED, Verdict.QUOTA, Verdict.AUTH


def body(**wanted: str | float | None) -> All:
    return All(tuple((path, OneOf((value,))) for path, value in wanted.items()))


def judged(rules: Sequence[Rule], status: int, value: Any = None, headers: Sequence[Line] = ()) -> Judgement:
    return Rules(rules).plan(status, headers).settle(value)


GOOGLE = [
    Rule(OK, json=body(status="OK")),
    Rule(NEGATIVE, json=body(status="ZERO_RESULTS")),
    Rule(QUOTA, json=body(status="OVER_QUERY_LIMIT", error_message="*daily*")),
    Rule(RATE_LIMITED, json=body(status="OVER_QUERY_LIMIT")),
]


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        ({"status": "OK"}, OK),
        ({"status": "ZERO_RESULTS"}, NEGATIVE),
        ({"status": "OVER_QUERY_LIMIT", "error_message": "your daily quota"}, QUOTA),
        ({"status": "OVER_QUERY_LIMIT", "error_message": "your rate-limit"}, RATE_LIMITED),
        ({"status": "OVER_QUERY_LIMIT"}, RATE_LIMITED),
        ({"status": "SOMETHING_NEW"}, OK),
        ([], OK),
    ],
)
def test_the_first_rule_that_matches(value: Any, verdict: Verdict) -> None:
    """In the order in which they are written; the status where none does."""
    assert judged(GOOGLE, 200, value).verdict is verdict


def test_the_status_where_no_rule_matches() -> None:
    """Rules take nothing from what they do not match."""
    for status in (200, 404, 429, 500):
        assert judged(GOOGLE, status, {}) == Judgement(BY_STATUS[status])


def test_a_status_has_the_rules_that_name_it() -> None:
    """One, several, or a whole class; those that name none are for all."""
    rules = [
        Rule(NEGATIVE, statuses=[404, 410]),
        Rule(AUTH, statuses=STATUS_CLASSES["5xx"]),
        Rule(QUOTA, json=body(a=1)),
    ]
    assert [judged(rules, status, {"a": 1}).verdict for status in (404, 410, 500, 599, 400)] == [
        NEGATIVE,
        NEGATIVE,
        AUTH,
        AUTH,
        QUOTA,
    ]


def test_headers_are_looked_at() -> None:
    """By name in any case, by glob; one field of several is enough, and all named must be there."""
    rules = [Rule(RATE_LIMITED, headers=[("X-Left", "0"), ("x-kind", "a*")])]
    fits = [Line(b"x-left", b"7"), Line(b"X-LEFT", b"0"), Line(b"X-Kind", b"abc")]
    assert judged(rules, 200, headers=fits).verdict is RATE_LIMITED
    assert judged(rules, 200, headers=fits[:2]).verdict is OK
    assert judged(rules, 200, headers=fits[::2]).verdict is OK


def test_the_body_is_asked_for_only_where_it_decides() -> None:
    """Not past a rule that matches without it, and only by rules for that status and these headers."""
    rules = Rules(
        [
            Rule(QUOTA, statuses=[429], headers=[("x-json", "1")], json=body(a=1)),
            Rule(QUOTA, statuses=[429, 403], json=body(b=1)),
            Rule(AUTH, statuses=[403]),
            Rule(QUOTA, statuses=[403], json=body(c=1)),
        ]
    )
    assert [len(rules.plan(status, ()).pending) for status in (200, 403, 429)] == [0, 1, 1]
    assert len(rules.plan(429, [Line(b"X-Json", b"1")]).pending) == 2
    assert rules.plan(403, ()).otherwise.verdict is AUTH
    assert rules.plan(429, ()).otherwise.verdict is RATE_LIMITED


def test_the_statuses_of_a_route_go_after_its_rules() -> None:
    """What `retry.on.statuses` makes of a status holds where no rule matches."""
    table = tuple(TRANSIENT if status == 404 else verdict for status, verdict in enumerate(BY_STATUS))
    rules = Rules([Rule(NEGATIVE, statuses=[404], json=body(code="none"))], table)
    assert rules.plan(404, ()).settle({"code": "none"}).verdict is NEGATIVE
    assert rules.plan(404, ()).settle({}).verdict is TRANSIENT


def test_what_an_answer_was_made_without() -> None:
    """Of the rule that matched."""
    rules = [Rule(OK, json=body(a=0), degraded="maps"), Rule(OK, json=body(b=0))]
    assert [judged(rules, 200, value).degraded for value in ({"a": 0}, {"b": 0}, {})] == ["maps", "", ""]


NAMES = st.sampled_from(["a", "b", "0", "a-b", "é"])
INNER = st.sampled_from([None, True, 0, 1.5, "x", "xy", 'q"', "é", ""])
JSON = st.recursive(
    INNER, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8
)
WANTED = st.lists(
    st.sampled_from([None, True, 0, 1.5, "x", "x*", "*", 'q"', "é", ""]), min_size=1, max_size=2
)
PATHS = st.lists(NAMES | st.just("*"), min_size=1, max_size=2).map(".".join)
PATTERNS = st.recursive(
    WANTED.map(lambda values: OneOf(tuple(values))),
    lambda inner: st.lists(st.tuples(PATHS, inner), min_size=1, max_size=2).map(lambda it: All(tuple(it))),
    max_leaves=3,
).filter(lambda test: isinstance(test, All))


def spelled(value: Any, data: st.DataObject) -> bytes:
    """JSON with white space and escapes as a server may put them."""

    def text(plain: str) -> str:
        if data.draw(st.booleans()):
            return json.dumps(plain, ensure_ascii=data.draw(st.booleans()))
        return '"' + "".join(f"\\u{ord(char):04x}" for char in plain) + '"'

    def of(value: Any) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{text(key)}{space}:{space}{of(it)}' for key, it in value.items())}}}"
        if isinstance(value, list):
            return f"[{', '.join(of(it) for it in value)}]"
        return text(value) if isinstance(value, str) else json.dumps(value)

    space = data.draw(st.sampled_from(["", " ", "\n\t"]))
    return of(value).encode()


@given(st.lists(st.tuples(PATTERNS, st.sampled_from([OK, QUOTA])), max_size=3), JSON, st.data())
def test_what_is_not_parsed_would_have_come_to_the_same(
    written: list[tuple[All, Verdict]], value: Any, data: st.DataObject
) -> None:
    """However the JSON is spelled: a text that is called decided has the verdict of no body."""
    text = spelled(value, data)
    assert json.loads(text) == value
    plan = Rules([Rule(verdict, json=pattern) for pattern, verdict in written]).plan(200, ())
    if plan.settle(value) != plan.otherwise:
        assert plan.undecided(text)


@given(st.lists(st.tuples(PATTERNS, st.sampled_from([OK, QUOTA])), max_size=3), JSON, st.data())
def test_what_is_picked_out_comes_to_the_same_as_the_whole(
    written: list[tuple[All, Verdict]], value: Any, data: st.DataObject
) -> None:
    """However the JSON is spelled, and wherever in it the members are."""
    text = spelled(value, data)
    plan = Rules([Rule(verdict, json=pattern) for pattern, verdict in written]).plan(200, ())
    picked = plan.pick(text)
    if picked is not UNCLEAR:
        assert plan.settle(picked) == plan.settle(json.loads(text))


@pytest.mark.parametrize(
    ("text", "picked"),
    [
        (b'{"routes": [1, {"a": 2}], "status": "OK"}', {"status": "OK"}),
        (b'{"status": "OK", "routes": [1, {"a": 2}]}', {"status": "OK"}),
        (b'{"status": "OK", "status": 5}', {"status": 5}),
        (b'{"a": {"status": "NOT"}, "status": "OK"}', {"status": "OK"}),
        (b'{"status": "OK", "a": {"status": "NOT"}}', {"status": "OK"}),
        (b'{"a": {"status": "NOT"}}', UNCLEAR),
        (b'[{"status": "NOT"}]', UNCLEAR),
        (b'{"a\\"status": "NOT"}', {}),
        (b'{"a": "\\"status\\": \\"NOT\\"}"}', {}),
        (b'{"st\\u0061tus": "OK"}', UNCLEAR),
        (b'{"a": ["status"]}', {}),
        (b'{"status": "OK"', UNCLEAR),
    ],
)
def test_what_is_picked_out(text: bytes, picked: object) -> None:
    """Members of the outermost object, the last of a name; what cannot be told so is unclear."""
    rules = Rules([Rule(QUOTA, json=body(status="QUOTA"))])
    assert rules.plan(200, ()).pick(text) == picked


@pytest.mark.parametrize(
    ("text", "undecided"),
    [
        (b'{"status": "OK", "x": ["OVER_QUERY_LIMIT"]}', False),
        (b'{"status" : "ZERO_RESULTS"}', True),
        (b'{"status": "OVER_QUERY_LIMIT"}', True),
        (b'{"status": 1}', False),
        (b'{"status": "Z\\u0045RO"}', True),
        (b'{"st\\u0061tus": "x"}', True),
        (b'{"text": "\\u003cb\\u003e \\u00e9"}', False),
        (b'{"text": "{\\"status\\": \\"ZERO_RESULTS\\"}"}', False),
        (b'{"a": {"status": "ZERO_RESULTS"}}', True),
        (b'{"status": "OK"}' * 33, True),
        (b"<html>", False),
        (b"", False),
    ],
)
def test_what_is_worth_parsing(text: bytes, *, undecided: bool) -> None:
    """Only what may come to another verdict than the status has; `status: OK` cannot."""
    assert Rules(GOOGLE).plan(200, ()).undecided(text) is undecided


def test_a_text_with_escapes_is_worth_parsing() -> None:
    """What it says is not seen without."""
    plan = Rules([Rule(QUOTA, json=body(message="*daily*"))]).plan(200, ())
    assert plan.undecided(b'{"message": "your \\"daily\\" quota"}')
    assert plan.undecided(b'{"message": "\\n"}')
    assert not plan.undecided(b'{"message": "your quota"}')


def test_a_member_that_may_be_an_element_is_worth_parsing() -> None:
    """Numbers, stars, names that have many spellings: no skimming tells."""
    for path in ("0", "a.*", "a-b", "é"):
        plan = Rules([Rule(QUOTA, json=All(((path, OneOf(("x",))),)))]).plan(200, ())
        assert plan.undecided(b"{}")


STATUSES = st.sampled_from([200, 404, 429, 500])
VALUES = st.sampled_from(["x", "xy", "y"])
GLOBS = st.sampled_from(["x", "x*", "*", "*y"])
SPECS = st.fixed_dictionaries(
    {
        "verdict": st.sampled_from(Verdict),
        "statuses": st.none() | st.lists(STATUSES, max_size=2),
        "header": st.none() | GLOBS,
        "json": st.none() | GLOBS,
    }
)


def naive(specs: Sequence[Any], status: int, header: str | None, value: str | None) -> Verdict:
    """Rule by rule, each condition by itself."""
    for spec in specs:
        if spec["statuses"] is not None and status not in spec["statuses"]:
            continue
        if spec["header"] is not None and (header is None or not glob_covers(spec["header"], header)):
            continue
        if spec["json"] is not None and (value is None or not glob_covers(spec["json"], value)):
            continue
        verdict: Verdict = spec["verdict"]
        return verdict
    return BY_STATUS[status]


@given(st.lists(SPECS, max_size=6), STATUSES, st.none() | VALUES, st.none() | VALUES)
def test_as_a_plain_reading_of_the_list(
    specs: list[Any], status: int, header: str | None, value: str | None
) -> None:
    """Whatever is settled ahead of time, the first rule that matches wins."""
    rules = [
        Rule(
            spec["verdict"],
            statuses=spec["statuses"],
            headers=() if spec["header"] is None else [("x-a", spec["header"])],
            json=None if spec["json"] is None else body(a=spec["json"]),
        )
        for spec in specs
    ]
    headers = [] if header is None else [Line(b"X-A", header.encode())]
    found = judged(rules, status, {} if value is None else {"a": value}, headers)
    assert found.verdict is naive(specs, status, header, value)


def test_statuses_that_are_judged_alike_share_their_plan() -> None:
    """A plan for each of a thousand statuses would be most of what a configuration weighs."""
    rules = Rules(GOOGLE)
    assert rules.plan(200, ()) is rules.plan(204, ())
    assert rules.plan(200, ()) is not rules.plan(503, ())
