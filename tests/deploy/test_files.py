"""The files of deploy/ as they are shipped: what they say of each other, and of the product."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

import yaml

from sidecar.config.load import load
from sidecar.dashboards.files import generate

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = DEPLOY / "docker-compose.production.yml"
ENVIRONMENT = {"NEXTVISION_ENV": "production", "REDIS_URL": "redis://valkey"}


def read(file: Path) -> dict[str, Any]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def pod() -> dict[str, Any]:
    spec = read(DEPLOY / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def test_the_generated_files_are_those_of_the_shipped_policies() -> None:
    """When these change: NEXTVISION_ENV=production REDIS_URL=redis://valkey sidecar dashboards deploy."""
    made = generate(load(ROOT / "sidecar.yaml", ENVIRONMENT))
    shipped = {name: (DEPLOY / name).read_text(encoding="utf-8") for name in made}
    assert shipped == made


def test_compose_mounts_files_that_are_there() -> None:
    """Every relative path on the left of a volume."""
    services = read(COMPOSE)["services"]
    volumes = [volume for service in services.values() for volume in service.get("volumes", ())]
    paths = [volume.partition(":")[0] for volume in volumes if volume.startswith("./")]
    assert len(paths) >= 4
    assert [path for path in paths if not (DEPLOY / path).exists()] == []


def test_every_variable_of_compose_is_in_the_example() -> None:
    """So that `.env.example` is all there is to fill in."""
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", COMPOSE.read_text(encoding="utf-8")))
    given = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert asked == given


def test_the_hosts_override_is_that_of_the_policies() -> None:
    """In compose, Kubernetes and Helm alike: a host more would be led to a sidecar that does not know it."""
    hosts = set(load(ROOT / "sidecar.yaml", ENVIRONMENT).hosts)
    app = read(COMPOSE)["services"]["app"]
    assert {it.partition(":")[0] for it in app["extra_hosts"]} == hosts
    assert set(pod()["hostAliases"][0]["hostnames"]) == hosts
    assert set(read(DEPLOY / "helm/nextvision-sidecar/values.yaml")["egressHosts"]) == hosts


def test_it_is_a_native_sidecar() -> None:
    """Before the app, until after it; started up before the app is; and no sleep before it stops."""
    [sidecar] = [it for it in pod()["initContainers"] if it["name"] == "sidecar"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/health/live"
    assert "lifecycle" not in sidecar
    assert pod()["terminationGracePeriodSeconds"] > 2 * 30


def test_nothing_runs_as_root() -> None:
    """And no container of the pod writes to its own file system or gains a right."""
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in (*pod()["initContainers"], *pod()["containers"]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    sidecar = read(COMPOSE)["services"]["sidecar"]
    assert (sidecar["read_only"], sidecar["cap_drop"]) == (True, ["ALL"])


def test_what_the_manifests_set_is_known(tmp_path: Path) -> None:
    """The arguments of the sidecar are a configuration that loads, without a warning."""
    [sidecar] = [it for it in pod()["initContainers"] if it["name"] == "sidecar"]
    for arguments in (sidecar["args"], read(COMPOSE)["services"]["sidecar"]["command"]):
        sets = [it.removeprefix("--set=") for it in arguments if it.startswith("--set=")]
        loaded = load(
            ROOT / "sidecar.yaml", {**ENVIRONMENT, "SIDECAR_ADMIN_TOKEN": secrets.token_hex(32)}, sets
        )
        assert str(loaded.config.listen.ingress) == "0.0.0.0:8080"
        assert loaded.config.batch.store is not None
        assert ".sidecar/" in str(loaded.config.batch.store)  # the volume: all else is read-only
        assert [str(it) for it in loaded.config.listen.intercept] == ["127.0.0.1:443"]
