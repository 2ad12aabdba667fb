#!/bin/sh
# Asks a sidecar how it is. POSIX sh and curl.
#   scripts/health-check.sh [basic|detailed|performance|readiness|liveness|metrics|full]
# SIDECAR_ADMIN is the admin listener (default http://127.0.0.1:9901), SIDECAR_TIMEOUT its patience in seconds (5).
# Exit: 0 healthy, 1 degraded, 2 unhealthy or not ready, 3 critical or no answer; 64 wrong usage.
set -u

admin=${SIDECAR_ADMIN:-http://127.0.0.1:9901}
admin=${admin%/}
patience=${SIDECAR_TIMEOUT:-5}
worst=0
body=
code=

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 64
}

# The state is the worst of all that was asked.
found() { [ "$1" -le "$worst" ] || worst=$1; }

# fetch PATH: sets `code` and `body`; fails where nothing answers.
fetch() {
    answer=$(curl --silent --show-error --noproxy '*' --max-time "$patience" --write-out '\n%{http_code}' "$admin$1" 2>&1) || {
        printf '%s: no answer from %s (%s)\n' "$1" "$admin" "$(printf '%s' "$answer" | head -n 1)"
        found 3
        return 1
    }
    code=${answer##*
}
    body=${answer%
*}
}

# The first "status" of the answer: the one of the whole.
status() { printf '%s' "$body" | sed -n 's/^[^"]*"status" *: *"\([a-z]*\)".*/\1/p' | head -n 1; }

judge() { # judge STATUS
    case $1 in
        healthy) found 0 ;;
        degraded) found 1 ;;
        unhealthy) found 2 ;;
        *) found 3 ;;
    esac
}

overall() { # overall PATH
    fetch "$1" || return
    state=$(status)
    printf '%s: %s\n' "$1" "${state:-no status (HTTP $code)}"
    judge "$state"
}

detailed() {
    overall /health/detailed || return
    [ -z "$body" ] || printf '%s\n' "$body"
}

liveness() {
    fetch /health/live || return
    if [ "$code" = 200 ]; then echo '/health/live: alive'; else
        echo "/health/live: HTTP $code"
        found 3
    fi
}

readiness() {
    fetch /health/ready || return
    if [ "$code" = 200 ]; then
        state=$(status)
        echo "/health/ready: ready, $state"
        [ "$state" = healthy ] || found 1 # degraded is not unready
    else
        echo "/health/ready: not ready: $(printf '%s' "$body" | sed -n 's/.*"reason" *: *"\([^"]*\)".*/\1/p')"
        found 2
    fi
}

metrics() {
    fetch /metrics || return
    families=$(printf '%s\n' "$body" | grep -c '^# TYPE ')
    echo "/metrics: $families families"
    if [ "$code" != 200 ] || [ "$families" -eq 0 ]; then found 2; fi
}

performance() {
    fetch /monitoring/performance || return
    if [ "$code" = 200 ]; then
        state=$(status)
        printf '/monitoring/performance: %s\n%s\n' "$state" "$body"
        judge "$state"
    else
        echo "/monitoring/performance: HTTP $code"
        found 2
    fi
}

[ $# -le 1 ] || usage
command -v curl >/dev/null || {
    echo 'health-check: curl is missing' >&2
    exit 64
}
case ${1:-basic} in
    basic) overall /health ;;
    detailed) detailed ;;
    performance) performance ;;
    readiness) readiness ;;
    liveness) liveness ;;
    metrics) metrics ;;
    full)
        liveness
        readiness
        detailed
        performance
        metrics
        ;;
    *) usage ;;
esac
case $worst in
    0) echo HEALTHY ;;
    1) echo DEGRADED ;;
    2) echo UNHEALTHY ;;
    *) echo CRITICAL ;;
esac
exit "$worst"
