"""Scenarios from files: the shipped ones by name, others by path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, cast

from sidecar.config.positions import read
from sidecar.config.problems import ConfigError, Origin, Problem, in_order, suggestion
from sidecar.config.validate import validate
from sidecar.demo.processes import examples
from sidecar.drills.plan import Plan, Request
from sidecar.drills.scenario import AnyScenario, Scenario, Template
from sidecar.drills.shape import Segment

SHIPPED: Final = Path(__file__).with_name("shipped")


class Found:
    """A scenario, and the folder its files are in."""

    def __init__(self, scenario: AnyScenario, file: Path) -> None:
        self.scenario = scenario
        self.file = file

    def beside(self, name: str) -> Path:
        return self.file.parent / name

    def plan(self, target: str, segments: tuple[Segment, ...]) -> Plan:
        """What the load is told. Raises ConfigError for a file that is not there."""
        scenario = self.scenario
        assert scenario.load is not None
        variables: dict[str, tuple[str, ...] | tuple[int, int]] = {}
        for name, variable in scenario.variables.items():
            if variable.range is not None:
                variables[name] = variable.range
            elif variable.file is not None:
                lines = self._text(self.beside(variable.file), f"variables.{name}.file").splitlines()
                variables[name] = tuple(line for line in lines if line.strip())
            else:
                variables[name] = variable.values
        return Plan(
            target=target,
            hosts=scenario.blast_radius.hosts,
            segments=segments,
            arrivals=scenario.load.arrivals,
            seed=scenario.load.seed,
            patience=scenario.load.patience,
            most=scenario.blast_radius.requests,
            connections=scenario.load.connections,
            requests=tuple(self._request(index, it) for index, it in enumerate(scenario.traffic)),
            variables=variables,
        )

    def _request(self, index: int, template: Template) -> Request:
        body, headers = template.body, dict(template.headers)
        if template.payload is not None:
            file = self.beside(template.payload)
            if not file.exists():
                file = examples() / "payloads" / template.payload
            body = self._text(file, f"traffic.{index}.payload")
        if body.lstrip().startswith(("{", "[")) and not any(it.lower() == "content-type" for it in headers):
            headers["Content-Type"] = "application/json"
        return Request(
            weight=template.weight,
            method=template.method,
            path=template.path,
            headers=headers,
            body=body,
            padding=template.padding or 0,
            expect=template.expect,
            wrong_if=template.wrong_if,
        )

    def _text(self, file: Path, key: str) -> str:
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
            raise ConfigError([Problem(Origin(str(self.file)), key, f"{file}: {why}")]) from None


def shipped() -> list[str]:
    """The names that need no file."""
    return sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def find(name: str, known: list[str] | None = None) -> Found:
    """The scenario of that name, or in that file. Raises ConfigError with all that is wrong with it."""
    if re.fullmatch(r"[\w-]+", name):
        names = shipped() if known is None else known
        if name not in names:
            mend = suggestion(name, names)
            raise ConfigError([Problem(Origin(name), "", f"there is no such scenario ({mend})")])
        return scenario_in(SHIPPED / f"{name}.yaml")
    return scenario_in(Path(name))


def members(found: Found, within: tuple[Path, ...] = ()) -> list[Found]:
    """The scenarios that are run for it: itself, or those of its suite. Raises ConfigError."""
    if not found.scenario.suite:
        return [found]
    within = (*within, found.file.resolve())
    runs = []
    for index, name in enumerate(found.scenario.suite):
        beside = found.beside(name)
        member = scenario_in(beside) if beside.is_file() else find(name)
        if member.file.resolve() in within:
            text = f"{name} is this suite, or one that it is in (leave it out)"
            raise ConfigError([Problem(Origin(str(found.file)), f"suite.{index}", text)])
        runs += members(member, within)
    return runs


def scenario_in(file: Path) -> Found:
    """Raises ConfigError."""
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "").lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([Problem(Origin(str(file)), "", why)]) from None
    tree, problems = read(text, str(file))
    scenario, wrong = validate(Scenario, tree, file.parent, [problem.path for problem in problems])
    errors = [it for it in in_order([*problems, *wrong]) if not it.warning]
    if errors or scenario is None:
        raise ConfigError(errors)
    return Found(cast("AnyScenario", scenario), file)
