"""The repository keeps what it promises to those who clone it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
TARGETS = [
    "bench",
    "clean",
    "demo",
    "format",
    "help",
    "lint",
    "lock",
    "setup",
    "test",
    "test-all",
    "test-newest",
]


def tracked() -> list[Path]:
    """Files that git tracks, or would with `git add`; all that is there in an export without git."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index(lock: Path) -> None:
    """The index is the installer's choice: a lock names no address, no option and no file."""
    for line in lock.read_text().splitlines():
        text = line.strip()
        assert re.match(r"[a-z0-9][a-z0-9.-]*==|--hash=sha256:[0-9a-f]{64}|#", text), text
        assert not re.search(r"://|file:|index|find-links", text), text


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_everything_with_hashes(lock: Path) -> None:
    """What is installed is what was locked, byte for byte."""
    entries = re.split(r"\n(?=[a-z0-9])", lock.read_text().strip())
    assert entries
    for entry in entries:
        assert "--hash=sha256:" in entry, entry


def test_the_locks_agree() -> None:
    """A package has one version, whichever lock installs it; but those of old clients, in a folder of their
    own, are what their apps have.
    """
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        if lock.name == "clients.lock":
            continue
        for name, version in re.findall(r"^([a-z0-9.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_every_target_is_there_and_explained() -> None:
    """`make help` lists each target."""
    shown = make("help").stdout
    assert [target for target in TARGETS if not re.search(rf"make {target} +\S", shown)] == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_can_be_made(target: str) -> None:
    """Make knows how to reach each target from a fresh clone (a dry run)."""
    done = make("--dry-run", "--always-make", target)
    assert done.returncode == 0, done.stderr


def test_no_file_names_a_path_of_a_machine() -> None:
    """A clone stands alone: no tracked file names the checkout it was written in, or somebody's home."""
    homes = re.compile(rb"(?<![\w.])/(?:home|Users)/[a-z][\w-]*/|/root/\.")
    checkout = str(ROOT).encode()
    own = Path(__file__).name
    named = [
        str(path.relative_to(ROOT))
        for path in tracked()
        if path.name != own and (checkout in (text := path.read_bytes()) or homes.search(text))
    ]
    assert named == []


def test_the_license_is_whole() -> None:
    """LICENSE is the Apache License 2.0, its terms and the appendix."""
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_installed_version_is_the_one_declared() -> None:
    """What `pip show` says is what pyproject.toml says."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert metadata.version("nextvision-sidecar") == declared


def test_every_lint_exemption_has_a_reason() -> None:
    """An ignored lint rule says on its line why."""
    text = (ROOT / "pyproject.toml").read_text()
    section = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.flake8-tidy-imports]")]
    rules = [line for line in section.splitlines() if re.match(r' +"[A-Z]+\d*"', line)]
    assert rules
    assert [line for line in rules if not re.search(r"# \S", line)] == []


def test_the_image_copies_only_what_its_builder_is_given() -> None:
    """Each file that the Dockerfile copies is there, and .dockerignore lets it through."""
    recipe = (ROOT / "Dockerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", recipe, flags=re.MULTILINE)
        for source in line.split()[:-1]
    }
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), flags=re.MULTILINE)
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []
    assert sorted(copied) == sorted(allowed)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_wheel_works_without_the_source(tmp_path: Path) -> None:
    """Installed from a wheel, away from the source: the package imports, is typed, brings its examples."""
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, *build], check=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)], check=True)
    program = (
        "import pathlib, sidecar, sidecar.cli\n"
        "home = pathlib.Path(sidecar.__file__).parent\n"
        "assert (home / 'py.typed').is_file(), 'py.typed'\n"
        "assert any((home / '_examples').glob('*.py')), 'examples'\n"
        "print(home)\n"
    )
    # The dependencies come from this environment, behind the wheel on the path; the checkout is on neither.
    packages = os.pathsep.join([str(site), str(Path(pytest.__file__).parent.parent)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": packages},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "sidecar")


def test_only_public_parts_of_aiohttp_are_used() -> None:
    """`aiohttp` and `aiohttp.web`: what stays, by its own promise, over a minor version."""
    imports = re.compile(r"^\s*(?:from (aiohttp[\w.]*) import (.+)|import (aiohttp[\w.]*).*)$", re.MULTILINE)
    for file in (ROOT / "sidecar").rglob("*.py"):
        for module, names, whole in imports.findall(file.read_text()):
            assert (module or whole) in ("aiohttp", "aiohttp.web"), file
            assert not re.search(r"\b_", names), file
