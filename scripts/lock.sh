#!/usr/bin/env bash
# Writes requirements/*.lock from pyproject.toml: every version and hash, for CPython 3.11 and later, and
# no address of any index. Arguments go to `uv pip compile`: --upgrade, --upgrade-package NAME.
set -euo pipefail
cd "$(dirname "$0")/.."

# A lock must come from the plain index, whatever this machine's settings add to it.
unset "${!UV_@}" "${!PIP_@}"

compile() { # compile NAME SOURCE...
    local name=$1
    shift
    python -m uv pip compile --no-config --quiet --universal --python-version 3.11 --no-header --generate-hashes \
        --custom-compile-command "make lock" --output-file "requirements/$name.lock" "$@"
}

compile dev pyproject.toml --extra demo --extra otel --extra sentry --extra stress --extra report --group dev --group build "$@"
# The others are subsets of it, but for what only the benchmark and the checks of deploy/ need: same versions everywhere.
compile run pyproject.toml --constraint requirements/dev.lock
compile build --group build --constraint requirements/dev.lock
compile bench pyproject.toml --extra demo --extra bench --constraint requirements/dev.lock "$@"
# Put where only what asks for them sees them: what they need comes from dev.lock.
compile clients --group clients --no-deps "$@"
compile deploy --group deploy --constraint requirements/dev.lock "$@"
