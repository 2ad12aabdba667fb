# Every target does its own set-up: a virtual environment in .venv, the pinned packages, the project itself.
# It needs Python 3.11 or later, git and a package index; set-up happens once and again when a lock changes.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
LOCKED := $(VENV)/locked.stamp
READY := $(VENV)/ready.stamp
BENCH_READY := $(VENV)/bench.stamp
DEPLOY_READY := $(VENV)/deploy.stamp
CLIENTS := $(VENV)/clients
CLIENTS_READY := $(VENV)/clients.stamp
NEWEST := $(VENV)/newest
NEWEST_OF := aiohttp uvloop httptools
NEWEST_TESTS := tests/admin tests/listeners tests/upstreams tests/e2e/test_cache.py tests/e2e/test_run.py
STEP := @printf '\n== %s\n'

# Nothing of the caller's Python leaks in.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-newest pytest lint format bench lock clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## .venv with all that development needs (every other target does it too)

$(LOCKED): requirements/dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: $(PYTHON) is older than Python 3.11: name another, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "make: $(PYTHON) has no venv module: on Debian, apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV) (once, about half a minute)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/dev.lock
	@touch $@

$(READY): $(LOCKED) pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH_READY): $(READY) requirements/bench.lock
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/bench.lock
	@touch $@

$(DEPLOY_READY): $(READY) requirements/deploy.lock
	@$(PIP) install --require-hashes --only-binary :all: -r requirements/deploy.lock
	@touch $@

$(CLIENTS_READY): $(READY) requirements/clients.lock
	@rm -rf $(CLIENTS)
	@$(PIP) install --require-hashes --only-binary :all: --no-deps --target $(CLIENTS) -r requirements/clients.lock
	@touch $@

demo: $(READY) ## real traffic with and without the sidecar, side by side; ARGS=--once ends after the table
	@$(PY) -m sidecar demo $(ARGS)

test: lint pytest ## all checks: format, lint, types, import rules, tests
	@printf '\nmake test: all checks passed\n'

pytest: $(READY) ## the tests alone; ARGS goes to pytest
	$(STEP) 'tests: pytest on $(JOBS) processes'
	@$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-all: $(DEPLOY_READY) $(CLIENTS_READY) ## the tests that need programs of the system (curl, node, npm); says what is missing
	@$(PY) scripts/system_programs.py
	$(STEP) 'tests with programs of the system: pytest -m system'
	@$(PY) -m pytest -m system $(ARGS)
	@printf '\nmake test-all: passed\n'

test-newest: $(READY) ## the tests of both sides of the wire, on the newest aiohttp, uvloop and httptools
	$(STEP) 'newest: pip install --upgrade $(NEWEST_OF)'
	@rm -rf $(NEWEST)
	@$(PIP) install --only-binary :all: --upgrade --target $(NEWEST) $(NEWEST_OF)
	@PYTHONPATH=$(CURDIR)/$(NEWEST) $(PY) -c 'import importlib.metadata as m; \
		print(*(f"{name} {m.version(name)}" for name in "$(NEWEST_OF)".split()), sep=", ")'
	@PYTHONPATH=$(CURDIR)/$(NEWEST) $(PY) -m pytest -n $(JOBS) --dist worksteal $(NEWEST_TESTS) $(ARGS)

lint: $(READY) ## format, lint, types and import rules
	$(STEP) 'format: ruff format --check'
	@$(PY) -m ruff format --check --output-format concise .
	$(STEP) 'lint: ruff check'
	@$(PY) -m ruff check --output-format concise .
	$(STEP) 'types: mypy --strict'
	@$(PY) -m mypy
	$(STEP) 'import rules: import-linter'
	@$(VENV)/bin/lint-imports --no-cache

format: $(READY) ## formats, and mends what the linter can mend
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

bench: $(BENCH_READY) ## CPU per request beside nginx, HAProxy, Envoy; says what is missing; ARGS goes to it
	@$(PY) -m bench $(ARGS)

lock: $(READY) ## pins again what pyproject.toml asks for; ARGS=--upgrade for the newest versions
	@$(PIP) install uv
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/lock.sh $(ARGS)

clean: ## removes .venv, caches and builds
	@rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
