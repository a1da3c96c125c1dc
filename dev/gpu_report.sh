#!/usr/bin/env bash
# Everything that wants a GPU, into one folder: dev/gpu_report.sh OUT [STEP...]
#
# Steps, in the order in which they run: machine probes kernels parity train torch bench sanitizer. It needs no cargo and no network,
# only the programs that `make gpu-report-programs` puts into build/gpu and the scripts in dev/, so those can be carried to the
# machine with the GPU. Each step has a log of its own and a time limit, and none stops the others; steps can be run in pieces, into
# the same folder. OUT/REPORT.md then is one page made of all logs that are there. DEVICE=emulated tries it out without a GPU, at
# tiny sizes. PYTHON is one that has PyTorch.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${1:?usage: dev/gpu_report.sh OUT [STEP...]}
shift
ALL="machine probes kernels parity train torch bench sanitizer"
STEPS=${*:-$ALL}
DEVICE=${DEVICE:-cuda}
BIN=build/gpu
LIMIT=${LIMIT:-240}
PYTHON=${PYTHON:-$([ -x build/venv/bin/python ] && echo build/venv/bin/python || echo python3)}
# What a step returns that needs something this machine has not.
ABSENT=77

for program in probes kernels bench train_gpt2 train_gpt2cu warpsmith; do
    [ -x $BIN/$program ] || { echo "gpu_report: expected $BIN/$program; make gpu-report-programs builds it" >&2; exit 2; }
done
mkdir -p "$OUT"

machine() {
    echo "system: $(uname -srm)"
    echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores"
    echo "source: $(git describe --always --dirty 2>/dev/null || echo unknown)"
    [ "$DEVICE" = cuda ] || { echo "GPU: emulated device"; return; }
    echo "GPU: $(nvidia-smi -i 0 --query-gpu=name,driver_version,memory.total,power.limit --format=csv,noheader)"
    nvidia-smi && nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
}

# Every kernel against the CPU device. One at a time: a fault of one then is not laid to another.
kernels() {
    # The emulated device has them all in `cargo test`; here a few show that this step works.
    local some=""
    [ "$DEVICE" = cuda ] || some="gelu layernorm reduce"
    # shellcheck disable=SC2086
    WARPSMITH_TEST_DEVICE=$DEVICE $BIN/kernels --test-threads 1 $some
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
        END { printf "%s: %d steps, furthest apart %.2e, allowed %s\n", name, steps, worst, limit
              exit !(steps > 0 && bad == 0) }
    ' name="$2" "$OUT/run-$1/main.log" "$OUT/run-$2/main.log"
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

# What single instructions do, for the emulated device to be held to.
probes() {
    if [ "$DEVICE" = cuda ]; then
        WARPSMITH_TEST_DEVICE=cuda WARPSMITH_RECORD_PROBES="$(realpath "$OUT")/golden" $BIN/probes --test-threads 1
    else
        $BIN/probes --test-threads 1
    fi
}

# PyTorch's attention and the like by themselves, then whole steps of ours and of PyTorch in turns.
torch() {
    "$PYTHON" -c 'import torch, numpy' 2>/dev/null ||
        { echo "$PYTHON has no PyTorch; PYTHON names one that has"; return $ABSENT; }
    local failed=0
    if [ "$DEVICE" = cuda ]; then
        "$PYTHON" dev/bench_attention.py -e d12,d24,d36,d48 -b 64 -t 1024 --out "$OUT/peers.json" || failed=1
        corpus 6000000
        "$PYTHON" dev/bench.py --ours "$BIN/train_gpt2cu -r 0" -e d12 -b 64 -t 1024 -d 524288 --rounds 3 \
            --torch bf16-master:compile:cudnn --torch bf16-master:compile:flash \
            --data "$OUT/data/stories_train_000001.bin" --record "$OUT/record" || failed=1
    else
        "$PYTHON" dev/bench_attention.py -e tiny -b 2 -t 64 --reps 3 --out "$OUT/peers.json" || failed=1
        corpus 200000
        "$PYTHON" dev/bench.py --device cpu --ours "$BIN/train_gpt2" --torch f32:eager -b 1 -t 32 --rounds 1 --steps 2 \
            --layers 1 --heads 1 --channels 32 --data "$OUT/data/stories_train_000001.bin" --record "$OUT/record" || failed=1
    fi
    return $failed
}

# Every kernel by itself, beside cuBLASLt and what the step before found of PyTorch.
bench() {
    local sizes="-e d12,d24,d36,d48 -b 64 -t 1024" peers=()
    [ ! -s "$OUT/peers.json" ] || peers=(--peers "$OUT/peers.json")
    [ "$DEVICE" = cuda ] || { sizes="-e tiny -b 2 -t 64 --gelu-fusion 2"; peers=(); }
    # shellcheck disable=SC2086
    $BIN/bench --bench --device "$DEVICE" $sizes "${peers[@]}" --record "$OUT/record"
}

sanitizer() {
    if [ "$DEVICE" != cuda ]; then
        WARPSMITH_TEST_DEVICE=emulated $BIN/kernels --test-threads 1 gelu || return
        echo "verdict: checker of the emulated device: no fault"
        return
    fi
    local carried=$BIN/compute-sanitizer failed=0 status
    [ ! -d "$carried" ] || PATH=$PWD/$carried:$PATH
    command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on this machine"; return $ABSENT; }
    for tool in memcheck racecheck initcheck synccheck; do
        WARPSMITH_TEST_DEVICE=cuda timeout 30 compute-sanitizer --tool $tool --error-exitcode 1 \
            $BIN/kernels --test-threads 1
        status=$?
        case $status in
            0) echo "verdict: $tool: no fault" ;;
            124) echo "verdict: $tool: no fault in 30 seconds, not finished" ;;
            *) echo "verdict: $tool: FAILED with $status, see sanitizer.log"; failed=1 ;;
        esac
    done
    return $failed
}

# shellcheck disable=SC2086
export -f $ALL corpus run compare
export OUT DEVICE BIN PYTHON ABSENT
failed=0
for step in $STEPS; do
    [[ " $ALL " == *" $step "* ]] || { echo "gpu_report: $step: expected one of: $ALL" >&2; exit 2; }
    started=$SECONDS
    timeout "$LIMIT" bash -c "$step" >"$OUT/$step.log" 2>&1
    case $? in
        0) result=ok ;;
        "$ABSENT") result=absent ;;
        124) result="FAILED, not done in $LIMIT s"; failed=1 ;;
        *) result=FAILED; failed=1 ;;
    esac
    echo "$step | $result | $((SECONDS - started))" | tee "$OUT/$step.result"
done
dev/gpu_report_page.sh "$OUT" || failed=1
exit $failed
