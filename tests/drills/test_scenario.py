"""Scenarios are read whole, and what is wrong with one is told with its place and its mend."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import get_args

import pytest

from sidecar.cli import main
from sidecar.config.problems import ConfigError
from sidecar.demo.processes import examples
from sidecar.drill_command import CI_SHARE
from sidecar.drills import reading
from sidecar.drills.scenario import KINDS, Asserts, GoogleMode, Mode

GUIDE = {
    # users, requests, ramp, requests a second, p95: APP.md's table
    "light_load": (5, 10, 10, 20, 0.5),
    "medium_load": (10, 20, 30, 100, 1.0),
    "high_load": (25, 20, 60, 300, 2.0),
    "extreme_load": (50, 25, 120, 500, 3.0),
    "sustained_load": (20, 100, 60, 200, 1.5),
}
GOOD = """\
name: mine
load: {steps: [{rate: 5/s, duration: 1s}]}
traffic: [{path: /}]
"""


@pytest.mark.parametrize("name", reading.shipped())
def test_a_shipped_scenario_is_right(name: str) -> None:
    """It can be read, is called as its file is, says what it shows, and its files are there."""
    found = reading.find(name)
    assert found.scenario.name == name
    assert found.scenario.title
    if not found.scenario.suite:
        assert found.scenario.load is not None
        assert found.plan("http://127.0.0.1:1", found.scenario.load.segments).requests


@pytest.mark.parametrize("name", GUIDE)
def test_the_numbers_of_the_guide(name: str) -> None:
    """The loads have the guide's users, requests, ramp, rate and percentile."""
    scenario = reading.find(name).scenario
    users, requests, seconds, rate, p95 = GUIDE[name]
    assert scenario.load is not None
    ramp, hold, *_ = scenario.load.segments
    assert ramp.requests == pytest.approx(users * requests)
    assert ramp.seconds == seconds
    assert (hold.start, hold.end, scenario.asserts.p95) == (rate, rate, p95)


def test_500_requests_a_second_are_asked_for() -> None:
    """extreme_load wants so many answered, with more of them due, and a client's rate limit in force."""
    scenario = reading.find("extreme_load").scenario
    assert scenario.load is not None
    assert scenario.asserts.throughput == 500
    assert scenario.load.segments[-1].start > 500
    assert scenario.stand.settings["limits.rate_limit.rate"] == "1000/m"


def test_the_modes_are_those_of_the_fake_providers() -> None:
    """What a scenario may say of a provider is what the provider can do, and all of it."""
    spec = importlib.util.spec_from_file_location("providers", examples() / "providers.py")
    assert spec is not None
    assert spec.loader is not None
    providers = importlib.util.module_from_spec(spec)
    sys.modules["providers"] = providers  # its annotations are looked up there
    try:
        spec.loader.exec_module(providers)
    finally:
        del sys.modules["providers"]
    assert {*get_args(Mode), "ok"} == set(providers.OPENAI_MODES)
    assert {*get_args(GoogleMode), "ok"} == set(providers.GOOGLE_MODES)


def test_the_suite_is_all_there_is() -> None:
    """full_suite runs every other shipped scenario."""
    suite = reading.find("full_suite").scenario.suite
    assert sorted([*suite, "full_suite"]) == reading.shipped()


def test_its_form_for_ci_takes_less_than_8_minutes() -> None:
    """With 7 s each for what comes before and after a load."""
    suite = [reading.find(name).scenario for name in reading.find("full_suite").scenario.suite]
    seconds = 0.0
    for scenario in suite:
        assert scenario.load is not None
        whole = sum(segment.seconds for segment in scenario.load.segments)
        seconds += 7 + whole * (1 if scenario.is_drill else CI_SHARE)
    assert seconds <= 480


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("/s", ""), ":2:23: load.steps[0].rate: "),
        (GOOD + "assert: {availability: 120%}\n", ":4:24: assert.availability: "),
        (
            GOOD + "assert: {availibility: 99%}\n",
            ":4:10: assert.availibility: unknown key (did you mean availability?)",
        ),
        (GOOD + "faults: [{at: 1s, app: killed}]\n", "faults[0].duration: the key is missing"),
        (
            GOOD + "faults: [{duration: 1s}]\n",
            "it is one of inject, app, providers, redis, dns, certificate, sidecar, slow",
        ),
        (GOOD + "faults: [{duration: 1s, redis: slow}]\n", "redis: slow and delay go together"),
        (GOOD + "faults: [{duration: 1s, app: killed, delay: 1s}]\n", "redis: slow and delay go together"),
        (GOOD + "faults: [{duration: 1s, providers: {}}]\n", "there is no provider"),
        (GOOD + "faults: [{duration: 1s, providers: {google: {mode: slow}}}]\n", "slow by no time"),
        (
            GOOD + "faults: [{duration: 1s, providers: {openai: {mode: zero_results}}}]\n",
            ":4:52: faults[0].providers.openai.mode: ",
        ),
        (
            GOOD + "faults: [{at: 1s, duration: 2s, app: hang}, {duration: 1.5s, app: killed}]\n",
            "faults.0: it breaks what faults.1 has broken and not mended yet",
        ),
        (GOOD.replace("/}", "'/{{who}}'}"), "traffic.0: there is no variable who (add it to variables)"),
        ("name: mine\ntraffic: [{path: /}]\n", "there is no load"),
        (GOOD.replace("/}", "/, wrong_if: '('}"), "wrong_if is no pattern"),
        ("name: mine\nload: {steps: [{rate: 1/s, duration: 2h}]}\n", "longer than an hour"),
        (
            GOOD
            + "blast_radius: {attempts: 20%}\n"
            + "faults: [{duration: 1s, inject: {upstream: app, fault: {reset: true}}}]\n",
            "faults.0: it hits more attempts than blast_radius.attempts allows (lower percent)",
        ),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    """Each error names the place, the key and the mend."""
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        reading.find(str(file))
    assert told in str(error.value)


def test_a_name_that_nobody_knows() -> None:
    """The nearest one is offered."""
    with pytest.raises(ConfigError, match=r"did you mean light_load\?"):
        reading.find("ligth_load")


def test_values_come_from_files_beside_it(tmp_path: Path) -> None:
    """A variable's values are the lines of a file."""
    (tmp_path / "places.txt").write_text("Paris\n\nLyon\n")
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("/}", "'/{{place}}'}") + "variables: {place: {file: places.txt}}\n")
    plan = reading.find(str(file)).plan("http://127.0.0.1:1", ())
    assert plan.variables["place"] == ("Paris", "Lyon")


def test_a_suite_may_hold_suites_and_files(tmp_path: Path) -> None:
    """Its scenarios are the shipped ones, and files beside it; one that is in itself is told."""
    (tmp_path / "mine.yaml").write_text(GOOD)
    (tmp_path / "inner.yaml").write_text("name: inner\nsuite: [mine.yaml, light_load]\n")
    outer = tmp_path / "outer.yaml"
    outer.write_text("name: outer\nsuite: [retry-storm, inner.yaml]\n")
    found = reading.members(reading.find(str(outer)))
    assert [it.scenario.name for it in found] == ["retry-storm", "mine", "light_load"]
    (tmp_path / "inner.yaml").write_text("name: inner\nsuite: [outer.yaml]\n")
    with pytest.raises(ConfigError, match=r"suite\.0: outer\.yaml is this suite, or one that it is in"):
        reading.members(reading.find(str(outer)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--without", "retry", "--target", "http://localhost"], "--without and --set are for a sidecar"),
        (["--admin", "http://localhost"], "--admin is of the sidecar at --target"),
        (["--ci", "--share", "20%"], "--ci and --share are two ways"),
        (["--leave-out", "p59"], 'there is no limit "p59" (one of availability, p50'),
        (["--json", "no/such/folder/report.json"], "there is no folder no/such/folder"),
        (["--target", "localhost:80"], '"localhost:80" is no URL'),
        (["--share", "0%"], "--share must be more than 0 %"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 and what to write instead, before anything is started."""
    assert main(["drill", "retry-storm", *options]) == 2
    assert told in capsys.readouterr().err


def test_one_fault_may_follow_another(tmp_path: Path) -> None:
    """The same thing may break again as soon as it was mended, and others meanwhile."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        GOOD + "faults: [{duration: 1s, app: hang}, {at: 1s, duration: 1s, app: killed}, "
        "{duration: 2s, providers: {google: {mode: reset}}}]\n"
    )
    assert len(reading.find(str(file)).scenario.faults) == 3


def test_the_example_of_the_docs_is_a_scenario(tmp_path: Path) -> None:
    """With every kind of fault and every limit."""
    text = (Path(__file__).parents[2] / "docs" / "stress.md").read_text("utf-8")
    [example] = re.findall(r"```yaml\n(name: .*?)```", text, flags=re.DOTALL)
    file = tmp_path / "checkout.yaml"
    file.write_text(example)
    scenario = reading.find(str(file)).scenario
    assert {kind for fault in scenario.faults for kind in fault.kinds} == set(KINDS)
    assert scenario.asserts.model_fields_set >= set(Asserts.model_fields) - {"p50", "p99"}
