#!/usr/bin/env bash
# Usage: dev/test.sh CARGO-TEST-ARGUMENTS...
# Runs `cargo test`, then repeats the failures, which may be far up, and lists the skipped tests with
# the reason for each. REQUIRE_TESTS="nvcc mpirun" makes it a failure if a test was skipped that needs
# one of these.
set -uo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
"${CARGO:-cargo}" test --no-fail-fast "$@" 2>&1 | tee "$log"
status=$?

[ "$status" = 0 ] || sed -nE '/^failures:$/,/^test result: FAILED/p; /^error(\[|:)/p' "$log"

# Other ignored tests are helper processes of tests that ran.
skipped=$(sed -nE 's/^test (.*) \.\.\. ignored, needs (.*)$/\1: needs \2/p' "$log" | sort)
[ -z "$skipped" ] || printf '\n%s tests were skipped:\n%s\n' "$(wc -l <<<"$skipped")" "$(sed 's/^/  /' <<<"$skipped")"
for need in ${REQUIRE_TESTS:-}; do
    # The part in parentheses says how to get it.
    if grep -qE ": needs [^(]*\b$need\b" <<<"$skipped"; then
        echo "REQUIRE_TESTS=$need: expected no test that needs $need to be skipped; the list is above" >&2
        status=1
    fi
done
exit "$status"
