#!/usr/bin/env bash
# Writes OUT/REPORT.md, one page of tables, from the logs that dev/gpu_report.sh left in OUT: dev/gpu_report_page.sh OUT
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:?usage: dev/gpu_report_page.sh OUT}
BIN=build/gpu

# ran STEP: whether there is something to show of it; else says so.
ran() {
    if [ ! -s "$OUT/$1.log" ]; then
        echo "Not run."
        return 1
    fi
    if grep -q '| absent |' "$OUT/$1.result" 2>/dev/null; then
        echo "Not run: $(tail -n 1 "$OUT/$1.log")."
        return 1
    fi
}

# tables STEP: the tables that a program printed, and what it said is wrong or missing.
tables() {
    awk '/^\|/ { if (tables && !inside) print ""; inside = 1; tables = 1; print; next }
         { inside = 0 }
         /^(WRONG|left out|no cuBLASLt)/ { print ""; print }' "$OUT/$1.log"
    grep -q '^|' "$OUT/$1.log" || nothing "$1"
}

# nothing STEP: in place of a row.
nothing() {
    printf '\nNothing found in %s.log, which ends so:\n```\n' "$1"
    tail -n 5 "$OUT/$1.log"
    echo '```'
}

# The numbers of the line in which a test program sums up, and the tests that failed.
tests() {
    printf '| passed | failed |\n|--:|--:|\n'
    sed -nE 's/^test result: .* ([0-9]+) passed; ([0-9]+) failed.*/| \1 | \2 |/p' "$OUT/$1.log" | grep . || nothing "$1"
    sed -nE 's/^test (.*) \.\.\. FAILED$/\nFailed: `\1`./p' "$OUT/$1.log"
}

parity() {
    printf '| type | steps | losses furthest apart | allowed |\n|---|--:|--:|--:|\n'
    sed -nE 's/^(\w+): ([0-9]+) steps, furthest apart (\S+), allowed (\S+)$/| \1 | \2 | \3 | \4 |/p' "$OUT/parity.log" |
        grep . || nothing parity
}

# The line of a step: step N/M | loss L .. | norm .. | lr .. | MS ms | SHARE MFU | RATE tok/s | ..; the first one is not typical.
train() {
    awk -F'|' '
        function number(text) { match(text, /[0-9.]+/); return substr(text, RSTART, RLENGTH) }
        /^step .* ms / { steps++; loss = number($2)
                         if (steps == 1) { first = loss; next }
                         ms[++timed] = number($5); mfu = $6; rate = $7 }
        END { if (!timed) exit 1
              for (i = 2; i <= timed; i++)
                  for (j = i; j > 1 && ms[j] + 0 < ms[j - 1] + 0; j--) { swap = ms[j]; ms[j] = ms[j - 1]; ms[j - 1] = swap }
              sub(/ MFU */, "", mfu); sub(/ tok\/s */, "", rate)
              print "| steps | first loss | last loss | median ms | fastest ms | tok/s at the end | MFU at the end |"
              print "|--:|--:|--:|--:|--:|--:|--:|"
              printf "| %d | %s | %s | %s | %s |%s |%s |\n", steps, first, loss, ms[int((timed + 1) / 2)], ms[1], rate, mfu }
    ' "$OUT/train.log" || nothing train
}

sanitizer() {
    sed -nE 's/^verdict: ([^:]*): (.*)/| \1 | \2 |/p' "$OUT/sanitizer.log" | grep . || nothing sanitizer
}

# What was measured beside the prediction, for the GPU whose record is here; else the prediction alone.
roofline() {
    local record gpu
    record=$(ls "$OUT"/record/*/*-kernels.json 2>/dev/null | grep -v '/emulated/' | tail -n 1)
    gpu=$(basename "$(dirname "${record:-none/h200/none}")")
    [ -n "$record" ] || echo "No GPU was measured here: the prediction for an H200."
    echo '```'
    $BIN/warpsmith roofline -e d12 -b 64 -t 1024 -d 524288 -r 0 --gpu "$gpu" --records "$OUT/record" 2>&1
    local status=$?
    echo '```'
    # A GPU that the model does not know is measured all the same.
    [ $status = 0 ] || [ "$gpu" != h200 ] || echo "Nothing found to predict with."
}

page() {
    printf '# What %s did\n\n' "$(sed -n 's/^GPU: //p' "$OUT/machine.log" 2>/dev/null | grep . || echo 'this machine')"
    printf '`dev/gpu_report.sh` wrote this page from the logs of its steps.\n\n'
    printf '| step | result | seconds |\n|---|---|--:|\n'
    for step in machine probes kernels parity train torch bench sanitizer; do
        sed 's/.*/| & |/' "$OUT/$step.result" 2>/dev/null || echo "| $step | not run | |"
    done
    printf '\n## Machine\n\n'
    ran machine && { printf '| | |\n|---|---|\n'; sed -nE 's/^(system|processor|GPU|source): (.*)/| \1 | \2 |/p' "$OUT/machine.log"; }
    printf '\n## Kernels against the CPU\n\n'
    ran kernels && tests kernels
    printf '\n## Parity: the same steps on the CPU and on the device\n\n'
    ran parity && parity
    printf '\n## A step of GPT-2 124M (at tiny sizes where the device is emulated)\n\n'
    ran train && train
    printf '\n## Sanitizer\n\n'
    ran sanitizer && { printf '| tool | verdict |\n|---|---|\n'; sanitizer; }
    printf '\n## Probes of instructions\n\n'
    ran probes && tests probes
    printf '\n## Kernels by themselves\n\n'
    ran bench && tables bench
    printf '\n## PyTorch\n\n'
    ran torch && tables torch
    printf '\n## Predicted and measured\n\n'
    roofline
}

page >"$OUT/REPORT.md"
echo "report: $OUT/REPORT.md"
# A step that went well and left nothing to show is one whose output this script no longer understands.
! grep '^Nothing found' "$OUT/REPORT.md" >&2
