#!/usr/bin/env bash
# Writes OUT/REPORT.md, one page of tables, from the logs of dev/gpu_report.sh in OUT.
# Usage: dev/gpu_report_page.sh OUT
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: dev/gpu_report_page.sh OUT}
BIN=${BIN:-build/gpu}

# parts STEP: prints the names of its parts that ended, in the order in which they started.
parts() {
    ls -tr "$OUT/$1".result "$OUT/$1"-*.result 2>/dev/null | sed 's|.*/||; s|\.result$||'
}

# result PART: prints `ok`, `absent`, or `FAILED, …`.
result() {
    sed -nE 's/^[^|]* \| (.*) \| [0-9]+$/\1/p' "$OUT/$1.result"
}

# ran STEP: whether it has anything to show; otherwise says so.
ran() {
    if [ -z "$(parts "$1")" ]; then
        echo "Not run."
        return 1
    fi
    if [ "$(result "$(parts "$1" | head -1)")" = absent ]; then
        echo "Not run: $(tail -n 1 "$OUT/$(parts "$1" | head -1).log")."
        return 1
    fi
}

# without PART: prints why a part that did not run has no row of numbers; returns 1 if it ran.
without() {
    case $(result "$1") in
    absent) tail -n 1 "$OUT/$1.log" ;;
    *"not run"*) result "$1" ;;
    *) return 1 ;;
    esac
}

# tuning PART: prints the rejected kernels and other warnings, then the chosen kernels. `bench`
# summarizes the choices at its end; its log also has choices for the small sizes of its checks.
tuning() {
    local log=$OUT/$1.log plan='matmul (forward|dgrad|wgrad)(, [a-z]+)* [0-9]+ x [0-9]+ x [0-9]+ [a-z0-9]+ \([a-z ]+\): ' warnings plans
    warnings=$(grep -sE '^warning: ' "$log")
    plans=$(grep -sE "^[^|:]+: $plan" "$log" | grep -v '^info: ') || plans=$(grep -sE "^info: $plan" "$log")
    [ -n "$warnings$plans" ] || return 0
    printf '\nKernels in `%s`:\n\n' "$1"
    printf '%s\n' "$warnings" "$plans" | awk 'NF && !seen[$0]++ { print "    " $0 }'
}

# tables PART: prints the program's tables, and its lines about wrong or missing results.
tables() {
    awk '/^\|/ { if (tables && !inside) print ""; inside = 1; tables = 1; print; next }
         { inside = 0 }
         /^(WRONG|left out|no cuBLASLt)/ { print ""; print }' "$OUT/$1.log" 2>/dev/null
    grep -qs '^|' "$OUT/$1.log" || nothing "$1"
    tuning "$1"
}

# Prints the cuBLASLt that our programs opened, as named by the head of `bench` and the start-up
# table of the trainer; one row if they agree.
libraries() {
    sed -nE 's/^cuBLASLt ((not found|[0-9]).*)$/| cuBLASLt | \1 |/p; s/^\| cuBLASLt +\| (.*[^ ]) *\|$/| cuBLASLt | \1 |/p' \
        "$OUT/bench.log" "$OUT"/train-*.log 2>/dev/null | awk '!seen[$0]++'
}

# nothing PART: prints a replacement for a missing row.
nothing() {
    printf '\nNothing found in %s.log (%s), which ends with:\n```\n' "$1" "$(result "$1")"
    tail -n 5 "$OUT/$1.log" 2>/dev/null | cut -c1-300
    echo '```'
}

# tests STEP: prints the test counts of each part, then the tests that failed.
tests() {
    local part numbers
    printf '| tests | passed | failed | result | seconds |\n|---|--:|--:|---|--:|\n'
    for part in $(parts "$1"); do
        numbers=$(sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed.*/\1 | \2/p' "$OUT/$part.log" 2>/dev/null)
        sed -E "s/^([^|]*) \| (.*) \| ([0-9]+)$/| \1 | ${numbers:- | } | \2 | \3 |/" "$OUT/$part.result"
    done
    for part in $(parts "$1"); do
        sed -nE 's/^test (.*) \.\.\. FAILED$/\nFailed: `\1`./p' "$OUT/$part.log" 2>/dev/null
        # A test that started but did not finish is the one that hung or crashed the process.
        case $(result "$part") in ok | absent) ;; *)
            awk '/^test .* \.\.\. / { name = $2; if (!/ \.\.\. ([a-zA-Z]+$|ignored)/) open = name; else open = "" }
                 END { if (open != "") printf "\nStarted but not finished: `%s`.\n", open }' "$OUT/$part.log" 2>/dev/null
            grep -qs '^test result' "$OUT/$part.log" || nothing "$part" ;;
        esac
    done
}

parity() {
    local part why
    printf '| type | steps | largest loss difference | allowed |\n|---|--:|--:|--:|\n'
    for part in $(parts parity | grep -vx parity-cpu); do
        if why=$(without "$part"); then echo "| ${part#parity-} | not run: $why | | |"; continue; fi
        sed -nE 's/^(\w+): ([0-9]+) steps, largest difference (\S+), allowed (\S+)$/| \1 | \2 | \3 | \4 |/p' "$OUT/$part.log" |
            grep . || nothing "$part"
    done
}

# Reads lines such as `step N/M | loss L .. | norm .. | lr .. | MS ms | SHARE MFU | RATE tok/s |
# ..`; the first one is not typical.
train() {
    local part why
    echo "| flags | steps | first loss | last loss | median ms | fastest ms | final tok/s | final MFU |"
    echo "|---|--:|--:|--:|--:|--:|--:|--:|"
    for part in $(parts train); do
        if why=$(without "$part"); then echo "| ${part#train-} | not run: $why | | | | | | |"; continue; fi
        awk -F'|' -v name="${part#train-}" '
            function number(text) { match(text, /[0-9.]+/); return substr(text, RSTART, RLENGTH) }
            /^step .* ms / { steps++; loss = number($2)
                             if (steps == 1) { first = loss; next }
                             ms[++timed] = number($5); mfu = $6; rate = $7 }
            END { if (!timed) exit 1
                  for (i = 2; i <= timed; i++)
                      for (j = i; j > 1 && ms[j] + 0 < ms[j - 1] + 0; j--) { swap = ms[j]; ms[j] = ms[j - 1]; ms[j - 1] = swap }
                  sub(/ MFU */, "", mfu); sub(/ tok\/s */, "", rate)
                  printf "| %s | %d | %s | %s | %s | %s |%s |%s |\n", name, steps, first, loss, ms[int((timed + 1) / 2)], ms[1], rate, mfu }
        ' "$OUT/$part.log" || nothing "$part"
    done
    for part in $(parts train); do tuning "$part"; done
}

# Prints the table of recorded steps. The timeline is in the archive.
profile() {
    local table=$OUT/run-d12-no-graphs/profile.txt
    [ -s "$table" ] || { echo "Nothing was recorded."; return; }
    sed 's/^/    /' "$table"
    printf '\nTimeline for ui.perfetto.dev: `run-d12-no-graphs/profile.json`.\n'
}

# Prints each tool and its verdict.
sanitizer() {
    local part
    printf '| tool | verdict |\n|---|---|\n'
    for part in $(parts sanitizer); do
        case $(result "$part") in
        ok) echo "| ${part#sanitizer-} | no fault |" ;;
        absent) echo "| ${part#sanitizer-} | not run: $(tail -n 1 "$OUT/$part.log") |" ;;
        *"timed out"*)
            grep -qE '^=+ (Invalid|Error|Barrier|Race)|FAILED' "$OUT/$part.log" && echo "| ${part#sanitizer-} | FAULTS, not finished |" ||
                echo "| ${part#sanitizer-} | no fault before the time limit |" ;;
        *) echo "| ${part#sanitizer-} | $(result "$part"), see $part.log |" ;;
        esac
    done
}

# Prints the measured times next to the prediction, for the GPU with a record; otherwise only the
# prediction. Limits come from the emulated device's counts, here or in the repository.
roofline() {
    local records record gpu status
    records=$(mktemp -d)
    cp -r benches/record/emulated "$records" 2>/dev/null
    cp -r "$OUT/record/." "$records" 2>/dev/null
    record=$(ls "$records"/*/*-kernels.json 2>/dev/null | grep -v '/emulated/' | tail -n 1)
    gpu=$(basename "$(dirname "${record:-none/h200/none}")")
    [ -n "$record" ] || echo "No GPU was measured here; this is the prediction for an H200."
    echo '```'
    "$BIN/warpsmith" roofline -e d12 -b 64 -t 1024 -d 524288 -r 0 --gpu "$gpu" --records "$records" 2>&1
    status=$?
    echo '```'
    rm -rf "$records"
    # A GPU that is unknown to the model can still be measured.
    [ $status = 0 ] || [ "$gpu" != h200 ] || echo "Nothing found for the prediction."
}

page() {
    local step
    printf '# GPU report: %s\n\n' "$(sed -n 's/^GPU: //p' "$OUT/machine.log" 2>/dev/null | grep . || echo 'unknown machine')"
    printf '`dev/gpu_report.sh` wrote this page from the logs of its steps.\n\n'
    printf '| step | result | seconds |\n|---|---|--:|\n'
    for step in machine probes kernels bench parity train peers torch sanitizer; do
        sed 's/.*/| & |/' "$OUT/$step.step" 2>/dev/null || echo "| $step | not run | |"
    done
    sed 's/.*/| & |/' "$OUT/nsys.step" 2>/dev/null
    printf '\n## Machine\n\n'
    ran machine && { printf '| | |\n|---|---|\n'; sed -nE 's/^(system|processor|GPU|source|Python|library: [^:]*): (.*)/| \1 | \2 |/p' "$OUT/machine.log"; libraries; }
    printf '\n## Kernels against the CPU\n\n'
    ran kernels && tests kernels
    printf '\n## Single kernels\n\n'
    ran bench && tables bench
    printf '\n## Parity: the same steps on the CPU and on the device\n\n'
    ran parity && parity
    printf '\n## Training steps of GPT-2 124M (tiny sizes on the emulated device)\n\n'
    ran train && train
    printf '\n## Steps of GPT-2 124M, operation by operation\n\n'
    ran train && profile
    [ ! -e "$OUT/nsys.step" ] || { printf '\n## Nsight Systems\n\n'; ran nsys && sed 's/^/    /' "$OUT/nsys.log"; }
    printf "\n## PyTorch's kernels\n\n"
    ran peers && tables peers
    printf '\n## Full steps compared with PyTorch\n\n'
    ran torch && tables torch
    printf '\n## Sanitizer\n\n'
    ran sanitizer && sanitizer
    printf '\n## Instruction probes\n\n'
    ran probes && tests probes
    printf '\n## Predicted and measured\n\n'
    roofline
}

page >"$OUT/REPORT.md"
echo "report: $OUT/REPORT.md"
# A step that succeeded but left nothing to show has output that these scripts do not understand.
! grep '^Nothing found' "$OUT/REPORT.md" >&2
