"""Templates: what is a variable, what is a brace, and that a value stays a value."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.decisions.template import (
    decoded,
    header_template,
    json_template,
    parameter,
    strings,
    text_template,
    variables,
)

HOSTILE = '"}],"admin":true,"x":"\\\r\n\t\0</script>{name}é\u2028'
ANYTHING = st.text(st.characters(codec="utf-8"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANYTHING,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANYTHING, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("{id}", ["id"]),
        ("{a}{b_2}{a}", ["a", "b_2", "a"]),
        ("{query.address}", ["query.address"]),
        ("{query.utm-source} {query.a[0]} {query.é}", ["query.utm-source", "query.a[0]", "query.é"]),
        ("{query}", ["query"]),
        ("{{id}}", []),
        ("{{query.id}} {id}", ["id"]),
        ("{{{id}}}", []),
        ("{}", []),
        ("{ id }", []),
        ("{2}", []),
        ("{query.}", []),
        ('{"skills": []}', []),
        ('{"a": {"b": 1}}', []),
        ("{id", []),
        ("id}", []),
    ],
)
def test_what_is_a_variable(text: str, names: list[str]) -> None:
    """A name, or a parameter's, within single braces; every other brace is a brace."""
    assert variables(text) == names


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{id}", "7"),
        ("{{id}}", "{id}"),
        ("a {id} {{id}} {} b", "a 7 {id} {} b"),
        ("{{{id}}}", "{{id}}"),
        ('{"id": "{id}"}', '{"id": "7"}'),
    ],
)
def test_what_a_template_gives(text: str, shown: str) -> None:
    """Doubled braces around a name are written as single ones, in text and in JSON alike."""
    assert text_template(text, "text/plain").render({"id": "7"}) == shown.encode()
    assert json.loads(json_template(json.dumps(text)).render({"id": "7"})) == shown
    assert json.loads(json_template(json.dumps([{"k": [text]}])).render({"id": "7"})) == [{"k": [shown]}]


def test_without_variables_it_is_made_once() -> None:
    """What is the same for every request is there, whole, from the start."""
    template = json_template('{"status": "OK", "n": [1, 2.50, {"{{not}}": "{{not}}"}, null]}')
    assert template.names == ()
    assert template.whole == b'{"status":"OK","n":[1,2.5,{"{{not}}":"{not}"},null]}'
    assert template.render({}) is template.whole


def test_names_of_members_are_as_they_are() -> None:
    """Only values have variables."""
    document = '{"{id}": "{id}"}'
    assert strings(document) == ["{id}"]
    assert json_template(document).render({"id": "7"}) == b'{"{id}":"7"}'


@given(JSON.filter(lambda value: not variables(json.dumps(value)) and "{{" not in json.dumps(value)))
def test_json_without_variables_means_the_same(value: object) -> None:
    """Any JSON comes out as what went in."""
    assert json.loads(json_template(json.dumps(value)).render({})) == value


@given(ANYTHING, ANYTHING)
def test_a_value_in_json_is_a_string(first: str, second: str) -> None:
    """Whatever a request holds, the document has the shape of its template, and the value in its place."""
    template = json_template('{"a": "<{first}|{second}>", "b": [true, "{first}"], "c": {}}')
    assert json.loads(template.render({"first": first, "second": second})) == {
        "a": f"<{first}|{second}>",
        "b": [True, first],
        "c": {},
    }


@given(ANYTHING)
def test_a_value_in_a_header_ends_no_line(value: str) -> None:
    """Only unreserved characters and escapes: no line break, no space, no comma."""
    shown = header_template("https://backup.example.com/{id}").render({"id": value})
    assert re.fullmatch(rb"https://backup\.example\.com/[A-Za-z0-9._~%-]*", shown)


@pytest.mark.parametrize(
    "kind", ["text/html", "TEXT/HTML; charset=utf-8", "application/xhtml+xml", "text/xml"]
)
def test_markup_in_a_value_is_escaped(kind: str) -> None:
    """A parameter cannot bring a script into a page."""
    shown = text_template("<p title='{q}'>{q}</p>", kind).render({"q": "<b>\"'&"})
    assert shown == b"<p title='&lt;b&gt;&quot;&#x27;&amp;'>&lt;b&gt;&quot;&#x27;&amp;</p>"


def test_plain_text_is_plain() -> None:
    """There nothing needs an escape."""
    assert text_template("«{q}»", "text/plain").render({"q": HOSTILE}) == f"«{HOSTILE}»".encode()


def test_hostile_value() -> None:
    """Quotes, line breaks and braces are letters like others: no value is looked at for variables."""
    shown = json.loads(json_template('{"id": "{name}", "admin": false}').render({"name": HOSTILE}))
    assert shown == {"id": HOSTILE, "admin": False}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"42", "42"),
        (b"a%20b", "a b"),
        (b"a+b", "a+b"),
        (b"%C3%A9t%C3%A9", "été"),
        (b"%FF", "\ufffd"),
        (b"\xff", "\ufffd"),
        (b"%zz%2", "%zz%2"),
        (b"%2525", "%25"),
        (b"%00", "\0"),
    ],
)
def test_a_part_of_a_path(raw: bytes, text: str) -> None:
    """Percent-decoded once, as UTF-8; a plus is a plus."""
    assert decoded(raw) == text


@pytest.mark.parametrize(
    ("query", "value"),
    [
        (b"", ""),
        (b"q", ""),
        (b"q=", ""),
        (b"q=a", "a"),
        (b"q=a+b%2Bc", "a b+c"),
        (b"p=1&q=a&q=b", "a"),
        (b"%71=a", "a"),
        (b"Q=a", ""),
        (b"q=a=b", "a=b"),
        (b"x=q=a", ""),
        (b"q=%C3%A9", "é"),
        (b"q=%E9", "\ufffd"),
    ],
)
def test_a_parameter(query: bytes, value: str) -> None:
    """The first of its name, decoded as a form is; nothing where there is none."""
    assert parameter(query, "q") == value
