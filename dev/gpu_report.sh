#!/usr/bin/env bash
# Everything that wants a GPU, into one folder: dev/gpu_report.sh OUT [STEP...]
#
# Steps, in the order of what is worth most: machine probes kernels parity train sanitizer. It needs no cargo and no network, only the
# programs that `make gpu-report-programs` puts into build/gpu, so those can be carried to the machine with the GPU. Each step has
# a log of its own and a time limit, and none stops the others. DEVICE=emulated tries it out without a GPU, at tiny sizes.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:?usage: dev/gpu_report.sh OUT [STEP...]}
shift
STEPS=${*:-machine probes kernels parity train sanitizer}
DEVICE=${DEVICE:-cuda}
BIN=build/gpu
LIMIT=${LIMIT:-240}

for program in probes kernels train_gpt2 train_gpt2cu warpsmith; do
    [ -x $BIN/$program ] || { echo "gpu_report: expected $BIN/$program; make gpu-report-programs builds it" >&2; exit 2; }
done
mkdir -p "$OUT"

machine() {
    uname -sr
    if [ "$DEVICE" = cuda ]; then nvidia-smi && nvidia-smi -q -d CLOCK,POWER,TEMPERATURE; else echo "emulated device"; fi
}

# What each instruction does, recorded and compared.
probes() {
    [ "$DEVICE" = cuda ] && export WARPSMITH_RECORD_PROBES=$OUT/golden
    WARPSMITH_TEST_DEVICE=$DEVICE $BIN/probes --test-threads 1
}

# Every kernel against the CPU device. One at a time: a fault of one then is not laid to another.
kernels() {
    WARPSMITH_TEST_DEVICE=$DEVICE $BIN/kernels --test-threads 1
}

corpus() {
    [ -e "$OUT/data/stories_train_000001.bin" ] || $BIN/warpsmith stories -o "$OUT/data" --tokens "$1" --force
}

# trainer FLAGS...: a run on the stories, its log of losses in $OUT/run-NAME
run() {
    local name=$1 program=$2
    shift 2
    rm -rf "$OUT/run-$name"
    $BIN/"$program" -i "$OUT/data/*_train_*.bin" -j "$OUT/data/*_val_*.bin" -o "$OUT/run-$name" -v 0 -s 0 "$@"
}

# The same twenty steps on the CPU and on the device: losses side by side, and how far apart the furthest are.
compare() {
    awk -v limit="$3" '
        { split($2, loss, ":"); if (loss[1] != "trl") next }
        NR == FNR { want[$1] = loss[2]; next }
        $1 in want { off = loss[2] / want[$1] - 1; if (off < 0) off = -off; if (off > worst) worst = off
                     if (loss[2] !~ /^[0-9.]+$/ || off > limit) bad++; steps++
                     print $1, want[$1], loss[2] }
        END { printf "%d steps, furthest apart %.2e, allowed %s\n", steps, worst, limit; exit !(steps > 0 && bad == 0) }
    ' "$OUT/run-$1/main.log" "$OUT/run-$2/main.log"
}

parity() {
    local shape="--layers 2 --heads 2 --channels 128 -b 2 -t 64 -x 20 -l 3e-4" failed=0
    # 50,304 columns of logits are slow to emulate.
    [ "$DEVICE" = cuda ] || shape="--layers 1 --heads 1 --channels 32 -b 1 -t 16 -x 2 -l 3e-4"
    corpus 200000
    # shellcheck disable=SC2086
    run cpu train_gpt2 $shape || return
    # shellcheck disable=SC2086
    run f32 train_gpt2cu --device "$DEVICE" --dtype f32 -f 0 $shape && compare cpu f32 1e-4 || failed=1
    # shellcheck disable=SC2086
    run bf16 train_gpt2cu --device "$DEVICE" --dtype bf16 $shape && compare cpu bf16 1e-2 || failed=1
    # shellcheck disable=SC2086
    run fp16 train_gpt2cu --device "$DEVICE" --dtype fp16 $shape && compare cpu fp16 5e-3 || failed=1
    return $failed
}

# The step that counts: GPT-2 124M, 64 x 1024 tokens eight times.
train() {
    corpus 6000000
    if [ "$DEVICE" = cuda ]; then
        run d12 train_gpt2cu -e d12 -b 64 -t 1024 -d 524288 -r 0 -x 20 -lg 5
    else
        run d12 train_gpt2cu --device "$DEVICE" --layers 1 --heads 1 --channels 64 -b 1 -t 32 -x 2
    fi
}

sanitizer() {
    [ "$DEVICE" = cuda ] || { echo "no GPU: the checker of the emulated device looks at every access in the kernel tests"; return; }
    command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on this machine"; return 1; }
    local failed=0
    for tool in memcheck racecheck initcheck synccheck; do
        echo "== $tool"
        WARPSMITH_TEST_DEVICE=cuda timeout 60 compute-sanitizer --tool $tool --error-exitcode 1 \
            $BIN/kernels --test-threads 1 || failed=1
    done
    return $failed
}

failed=0
printf '%-10s %-8s %s\n' step result seconds | tee "$OUT/summary.txt"
for step in $STEPS; do
    case $step in machine | probes | kernels | parity | train | sanitizer) ;;
        *) echo "gpu_report: $step: expected machine, probes, kernels, parity, train or sanitizer" >&2; exit 2 ;;
    esac
    started=$SECONDS result=ok
    export -f machine probes kernels corpus run compare parity train sanitizer
    OUT=$OUT DEVICE=$DEVICE BIN=$BIN timeout "$LIMIT" bash -c "$step" >"$OUT/$step.log" 2>&1 || { result=FAILED; failed=1; }
    printf '%-10s %-8s %s\n' "$step" $result $((SECONDS - started)) | tee -a "$OUT/summary.txt"
done
exit $failed
