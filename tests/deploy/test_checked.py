"""The files of deploy/, and the Dockerfile, as the tools take them that will read them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import Program, Sidecar, TinyApp, free_port, until_connects
from tests.support.valkey import running

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/nextvision-sidecar"
EVERYTHING: dict[str, Any] = {
    "monitoring": {"enabled": True},
    "sidecar": {"policies": {"a.yaml": "name: a\n"}, "set": {"limits.drain": "5s"}},
}


def test_compose_is_valid() -> None:
    """Against the models of the Compose Specification."""
    import compose_spec

    text = (DEPLOY / "docker-compose.production.yml").read_text()
    # As Compose interpolates it; what must be given is.
    text = re.sub(r"(?<!\$)\$\{\w+(?::-([^}]*)|:\?[^}]*)\}", lambda found: found[1] or "given", text)
    loaded = compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))
    loaded.validate()
    assert set(loaded.service_names()) >= {
        "app",
        "sidecar",
        "valkey",
        "prometheus",
        "alertmanager",
        "grafana",
    }


def test_compose_reads_it(tmp_path: Path) -> None:
    """Compose itself: extensions merged, variables filled in, each service with what it mounts."""
    text = (DEPLOY / "docker-compose.production.yml").read_text()
    # Debian's Compose is of the first generation, which takes the project's name by an option alone.
    (tmp_path / "docker-compose.yml").write_text(re.sub(r"^name: .*$", "", text, flags=re.MULTILINE))
    given = {**os.environ, **dict.fromkeys(re.findall(r"\$\{(\w+):\?", text), "given")}
    ran = subprocess.run(
        ["docker-compose", "-p", "nextvision", "-f", str(tmp_path / "docker-compose.yml"), "config"],
        env=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    services = yaml.safe_load(ran.stdout)["services"]
    assert services["sidecar"]["environment"]["SIDECAR_ADMIN_TOKEN"] == "given"
    assert services["app"]["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["deployment", "service", "networkpolicy", "poddisruptionbudget"])
def test_kubernetes_manifests_are_valid(name: str) -> None:
    """Against the schemas of Kubernetes, with no property that it does not know."""
    import kubernetes_validate

    manifest = yaml.safe_load((DEPLOY / f"kubernetes/{name}.yaml").read_text())
    kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_the_chart_passes_helms_linter() -> None:
    """`helm lint`, by the library of Helm itself."""
    from helm_python import chart

    found = chart.lint(CHART)
    assert found["errors"] == []
    # That an icon is recommended is no warning.
    assert [it for it in found["messages"] if it["severity"] > 1] == []


@pytest.mark.parametrize("values", [{}, EVERYTHING])
def test_the_chart_renders_to_valid_manifests(values: dict[str, Any]) -> None:
    """With the values as they are, and with all that can be switched on."""
    import kubernetes_validate
    from helm_python import chart

    with chart.Chart.load(CHART) as loaded:
        rendered = loaded.render(values=values, name="demo", namespace="apps")
    manifests = [it for text in rendered.values() for it in yaml.safe_load_all(text) if it]
    assert {"Deployment", "Service", "NetworkPolicy"} <= {it["kind"] for it in manifests}
    for manifest in manifests:
        if manifest["kind"] != "PodMonitor":  # of the Prometheus operator
            kubernetes_validate.validate(manifest, "1.31", strict=True)


def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    """`promtool check config`, with the rules where the file has them."""
    text = (DEPLOY / "prometheus/prometheus.yml").read_text()
    file = tmp_path / "prometheus.yml"
    file.write_text(text.replace("/etc/prometheus/rules/", f"{DEPLOY}/prometheus/"))
    done = subprocess.run(
        ["promtool", "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_the_dockerfile_passes_its_linter() -> None:
    """Hadolint has nothing to say."""
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [str(hadolint), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("file", sorted((DEPLOY / "grafana").glob("*.json")), ids=lambda it: it.stem)
def test_dashboards_fit_the_schema_of_grafana(file: Path) -> None:
    """Read by Grafana's own models and written again they are the same: nothing in them is unknown."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    board = json.loads(file.read_text())
    again = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    assert lost(board, again) == []


def lost(there: object, again: object, path: str = "$") -> list[str]:
    """What of `there` is not in `again`; what the models add by default does not matter."""
    if isinstance(there, dict) and isinstance(again, dict):
        return [
            problem
            for key, value in there.items()
            for problem in (
                [f"{path}.{key}"] if key not in again else lost(value, again[key], f"{path}.{key}")
            )
            if value is not None
        ]
    if isinstance(there, list) and isinstance(again, list) and len(there) == len(again):
        pairs = enumerate(zip(there, again, strict=True))
        return [problem for at, (one, other) in pairs for problem in lost(one, other, f"{path}[{at}]")]
    return [] if there == again else [f"{path}: {there!r} became {again!r}"]


@pytest.mark.timeout(420)
async def test_the_steps_of_the_dockerfile(tmp_path: Path) -> None:
    """Those that build, in an empty folder with a fresh Python: what they made serves."""
    recipe = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    build = recipe[: recipe.index("\nFROM", recipe.index("FROM") + 1)]
    source, home = tmp_path / "src", tmp_path / "opt/sidecar"
    assert run([sys.executable, "-m", "venv", str(tmp_path / "python")]).returncode == 0
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("VIRTUAL_ENV", "PYTHON"))},
        **dict(re.findall(r"(PIP_\w+)=(\S+)", build)),
        "PATH": f"{tmp_path / 'python/bin'}:{os.environ['PATH']}",
    }
    source.mkdir()
    for kind, rest in re.findall(r"^(COPY|RUN) (.+)$", build, flags=re.MULTILINE):
        if kind == "COPY":
            *files, target = rest.split()
            for file in files:
                into = source / target if len(files) == 1 else source / target / Path(file).name
                into.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / file).is_dir():
                    shutil.copytree(ROOT / file, into, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / file, into)
        else:
            done = run(["sh", "-ec", rest.replace("/opt/sidecar", str(home))], cwd=source, env=environment)
            assert done.returncode == 0, f"{rest}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    etc = tmp_path / "etc"
    shutil.copytree(ROOT / "policies", etc / "policies")
    shutil.copy(ROOT / "sidecar.yaml", etc)
    [port, admin] = [free_port() for _ in range(2)]
    sets = (
        f"listen.ingress=127.0.0.1:{port}",
        f"listen.admin=127.0.0.1:{admin}",
        "listen.egress=127.0.0.1:0",
    )
    sidecar = Program(
        [str(home / "bin/sidecar"), "run", "-c", str(etc / "sidecar.yaml"), *(f"--set={it}" for it in sets)],
        tmp_path / "out",
        PYTHONPATH="",
    )
    [check] = re.findall(r"^HEALTHCHECK .*?CMD (\[.+\])$", recipe, flags=re.MULTILINE)
    command = [it.replace("9901", str(admin)) for it in json.loads(check)]
    command[0] = str(home / "bin/python")
    assert run(command).returncode != 0
    await sidecar.start()
    try:
        await until_connects(admin)
        assert run(command).returncode == 0
    finally:
        await sidecar.end()


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def health(admin: str, *arguments: str) -> tuple[int, str]:
    script = str(ROOT / "scripts/health-check.sh")
    done = run(["sh", script, *arguments], env={**os.environ, "SIDECAR_ADMIN": admin})
    return done.returncode, done.stdout


MODES = ("basic", "detailed", "performance", "readiness", "liveness", "metrics", "full")


async def until(wanted: int, admin: str) -> None:
    """Waits until the exit code of `basic` is as wanted, for half a minute at most."""
    for _ in range(150):
        code, said = health(admin)
        if code == wanted:
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{code} instead of {wanted}: {said}")


def codes(admin: str) -> dict[str, int]:
    return {mode: health(admin, mode)[0] for mode in MODES}


@pytest.mark.timeout(120)
async def test_health_check_tells_how_it_is(tmp_path: Path) -> None:
    """By the exit code of each mode: 0 all is well, 1 Redis is dead, 2 the app is dead, 3 nobody answers."""
    app = TinyApp(tmp_path)
    port = free_port()
    policy = {"name": "tiny", "routes": [{"name": "all", "cache": {"ttl": "1m"}}]}
    sidecar = Sidecar(
        tmp_path,
        app.port,
        policy,
        app={"url": f"http://127.0.0.1:{app.port}", "health_interval": "1s"},
        cache={"redis": f"redis://127.0.0.1:{port}"},
    )
    lives = {"liveness": 0, "metrics": 0}
    await app.start()
    with running(port=port) as redis:
        await sidecar.start()
        try:
            await until(0, sidecar.admin)
            assert codes(sidecar.admin) == dict.fromkeys(MODES, 0)
            redis.kill()
            await until(1, sidecar.admin)
            assert codes(sidecar.admin) == dict.fromkeys(MODES, 1) | lives
            await app.end()
            await until(2, sidecar.admin)
            assert codes(sidecar.admin) == dict.fromkeys(MODES, 2) | lives
        finally:
            await sidecar.end()
    assert codes(sidecar.admin) == dict.fromkeys(MODES, 3)


def test_health_check_says_how_it_is_used() -> None:
    """An unknown mode is 64, which is no state of health."""
    assert health("http://127.0.0.1:9", "wellness") == (64, "")
