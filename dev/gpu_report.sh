#!/usr/bin/env bash
# Runs everything that needs a GPU, into one folder, within ten minutes.
# Usage: dev/gpu_report.sh OUT [STEP...]
#
# Steps, in order: machine probes kernels bench parity train peers torch sanitizer; our own code,
# which may be wrong, comes first. One more runs only if it is named: nsys. No cargo or network is needed: the script runs from a checkout
# after `make gpu-report-programs`, or where build/gpu.tar.xz was unpacked. Each step is divided
# into parts. Each part is a separate process with its own log and time limit, and none stops the
# others. Steps can be run separately into the same folder.
#
# After each part OUT/report.tgz (or SAVE) has everything so far, without data and checkpoints;
# OUT/REPORT.md is one page made from all existing logs.
#   DEVICE=emulated   try it without a GPU, at tiny sizes
#   PYTHON=python3    a Python with PyTorch; the cuBLASLt and NCCL of its packages are used, unless
#                     VIRTUAL_ENV names another
#   LIMIT_bench=300   another limit for a step, in seconds
#   SIZES="-e d12,d24 -b 64 -t 1024"   sizes for `bench` and `peers`
#   KERNELS="attention matmul::hopper" tests for `kernels` and `sanitizer`
set -uo pipefail
OUT=${1:?usage: dev/gpu_report.sh OUT [STEP...]}
shift
# Given paths are relative to the caller's folder, those below to this script's.
OUT=$(realpath -m -- "$OUT")
SAVE=$(realpath -m -- "${SAVE:-$OUT/report.tgz}")
[ -z "${BIN:-}" ] || BIN=$(realpath -m -- "$BIN")
# Not resolved if it is a link: a virtual environment is where its link is.
[[ "${PYTHON:-}" != */* ]] || PYTHON=$(realpath -ms -- "$PYTHON")
cd "$(dirname "$0")/.."

ALL="machine probes kernels bench parity train peers torch sanitizer"
STEPS=${*:-$ALL}
# Within ten minutes there is no time for these.
EXTRA="nsys"
DEVICE=${DEVICE:-cuda}
BIN=${BIN:-build/gpu}
PYTHON=${PYTHON:-$([ -x build/venv/bin/python ] && echo build/venv/bin/python || echo python3)}
# Seconds after which `timeout` kills a process that ignored its signal.
GRACE=5
# Exit status of a part that needs something that this machine lacks.
ABSENT=77

# limit STEP: its limit in seconds, for all parts together.
limit() {
    local given=LIMIT_$1 seconds
    case $1 in
    machine) seconds=20 ;; probes) seconds=20 ;; kernels) seconds=95 ;; bench) seconds=85 ;; parity) seconds=40 ;;
    train) seconds=145 ;; peers) seconds=35 ;; torch) seconds=110 ;; sanitizer) seconds=45 ;; nsys) seconds=60 ;;
    esac
    echo "${!given:-$seconds}"
}

# --- running parts

# say NAME RESULT SECONDS: prints a line for the page and for the terminal.
say() {
    printf '%s | %s | %s\n' "$1" "$2" "$3" | tee "$OUT/$1.result"
}

# Saves everything so far in one file, for machines that return few files; it is always complete.
save() {
    local new
    new=$(mktemp) && tar -C "$OUT" -czf "$new" --exclude='*.bin' --exclude=./data --exclude='./report.tgz*' . &&
        cp "$new" "$SAVE.new" && mv "$SAVE.new" "$SAVE" && chmod a+r "$SAVE"
    rm -f "$new"
}

# part NAME SECONDS COMMAND...: runs a part with its log in OUT/NAME.log; with less time, or not at
# all, if the step's time is nearly up. Returns 1 if it failed.
part() {
    local name=$1 seconds=$2 started=$SECONDS left=$((deadline - SECONDS - GRACE)) result failed=0
    shift 2
    [ "$left" -gt "$seconds" ] || seconds=$left
    if [ "$seconds" -lt 1 ]; then
        rm -f "$OUT/$name.log"
        say "$name" "FAILED, not run: $step was out of time" 0
        return 1
    fi
    timeout -k $GRACE "$seconds" "$@" >"$OUT/$name.log" 2>&1
    case $? in
    0) result=ok ;;
    "$ABSENT") result=absent ;;
    124 | 137) result="FAILED, timed out after $seconds s" failed=1 ;;
    *) result=FAILED failed=1 ;;
    esac
    say "$name" "$result" $((SECONDS - started))
    save
    return $failed
}

# --- steps

# machine: describes the machine. Our programs report the cuBLASLt they use in the logs of `bench`
# and `train`.
describe_machine() {
    echo "system: $(uname -srm)"
    echo "processor: $(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -1), $(nproc) cores"
    echo "source: $(git describe --always --dirty 2>/dev/null || cat SOURCE 2>/dev/null || echo unknown)"
    echo "Python: $("$PYTHON" -c 'import sys; print(sys.executable, sys.version.split()[0])' 2>/dev/null || echo none)"
    local name found
    for name in libcuda.so.1 libnvidia-ml.so.1 libnccl.so.2; do
        found=$({ ldconfig -p | sed -n "s/^[[:space:]]*${name//./\\.} .*=> //p"
            find /usr/local/cuda/lib64 "${VIRTUAL_ENV:-/nowhere}" -name "$name"; } 2>/dev/null | head -1)
        echo "library: $name: ${found:-not found}"
    done
    [ "$DEVICE" = cuda ] || { echo "GPU: emulated device"; return; }
    echo "GPU: $(nvidia-smi -i 0 --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm --format=csv,noheader)"
    nvidia-smi && nvidia-smi -q -d CLOCK,POWER,TEMPERATURE
}
machine() { part machine 15 bash -c describe_machine; }

# Single instructions, recorded as a reference for the emulated device. One process per module,
# because a fault breaks its context: other modules must not be blamed. Tests outside of modules
# need no GPU.
probes() {
    local set=() tests module failed=0
    [ "$DEVICE" != cuda ] || set=(WARPSMITH_TEST_DEVICE=cuda "WARPSMITH_RECORD_PROBES=$OUT/golden")
    tests=$("$BIN/probes" --list 2>/dev/null | sed -n 's/: test$//p')
    [ -n "$tests" ] || { part probes 10 "$BIN/probes" --list; return 1; }
    for module in $(sed -n 's/::.*//p' <<<"$tests" | sort -u); do
        # Exact names, because a filter such as mma:: finds wgmma:: too.
        # shellcheck disable=SC2046
        part "probes-$module" 10 env "${set[@]}" "$BIN/probes" --test-threads 1 --exact $(grep "^$module::" <<<"$tests") ||
            failed=1
    done
    return $failed
}

# Trains a single rank with NCCL and without it; both must be equal bit for bit.
train_with_nccl() {
    "$BIN/nccl" --ignored --nocapture --exact case_load | grep -q 'loaded: ' || { echo "no usable NCCL on this machine"; return $ABSENT; }
    "$BIN/nccl" --ignored --test-threads 1 one_rank
}

# Every kernel against the CPU device, one process per module as above; those with the newest
# instructions come first. NCCL with a single GPU last.
kernels() {
    local modules failed=0 module skip=()
    # The emulated device runs them all in `cargo test`; here a few show that this step works.
    if [ -n "${KERNELS:-}" ]; then modules=$KERNELS
    elif [ "$DEVICE" != cuda ]; then modules="gelu reduce"
    else
        modules="matmul::hopper matmul_waves::hopper attention classifier layernorm encoder adamw"
        modules+=" $("$BIN/kernels" --list 2>/dev/null | sed -n 's/::.*: test$//p' | sort -u | grep -vwE "${modules// /|}|harness")"
        # These have already run.
        skip=(--skip hopper)
    fi
    for module in $modules; do
        # Full module names get `::`; a filter that is the beginning of a test name is used as it
        # is.
        case $module in
        *::*) set -- ;;
        *) module+=:: && set -- "${skip[@]}" ;;
        esac
        part "kernels-$(tr -s : - <<<"${module%::}")" 45 \
            env WARPSMITH_TEST_DEVICE="$DEVICE" "$BIN/kernels" --test-threads 1 "$module" "$@" || failed=1
    done
    [ "$DEVICE" != cuda ] || [ -n "${KERNELS:-}" ] || part kernels-nccl 30 bash -c train_with_nccl || failed=1
    return $failed
}

# Every kernel of GPT-2 124M by itself, checked at full size and timed, next to cuBLASLt and, if
# known, PyTorch.
bench() {
    local sizes="${SIZES:--e d12 -b 64 -t 1024} --reps 10" peers=()
    [ ! -s "$OUT/peers.json" ] || peers=(--peers "$OUT/peers.json")
    [ "$DEVICE" = cuda ] || { sizes="-e tiny -b 2 -t 64"; peers=(); }
    # shellcheck disable=SC2086
    part bench 85 "$BIN/bench" --bench --device "$DEVICE" $sizes --gelu-fusion 2 "${peers[@]}" --record "$OUT/record"
}

# corpus TOKENS: creates a folder of stories of that size.
corpus() {
    [ -e "$OUT/data/$1/stories_train_000001.bin" ] || "$BIN/warpsmith" stories -o "$OUT/data/$1" --tokens "$1" --force
}

# run TOKENS NAME PROGRAM FLAGS...: trains on the stories; the losses are in OUT/run-NAME.
run() {
    local data=$OUT/data/$1 name=$2 program=$3
    shift 3
    corpus "$(basename "$data")" || return
    rm -rf "$OUT/run-$name"
    # Words of a command that runs it.
    # shellcheck disable=SC2086
    ${UNDER:-} "$BIN/$program" -i "$data/*_train_*.bin" -j "$data/*_val_*.bin" -o "$OUT/run-$name" -v 0 -s 0 "$@"
}

# Prints the losses of the CPU and of the device, and their largest difference.
compare() {
    awk -v limit="$2" -v name="$1" '
        { split($2, loss, ":"); if (loss[1] != "trl") next }
        NR == FNR { want[$1] = loss[2]; next }
        $1 in want { off = loss[2] / want[$1] - 1; if (off < 0) off = -off; if (off > worst) worst = off
                     if (loss[2] !~ /^[0-9.]+$/ || off > limit) bad++; steps++
                     print $1, want[$1], loss[2] }
        END { printf "%s: %d steps, largest difference %.2e, allowed %s\n", name, steps, worst, limit
              exit !(steps > 0 && bad == 0) }
    ' "$OUT/run-cpu/main.log" "$OUT/run-$1/main.log"
}

# The same twenty steps on the CPU and, in each type, on the device.
parity() {
    local shape="--layers 2 --heads 2 --channels 128 -b 2 -t 64 -x 20 -l 3e-4" failed=0 type allowed flags
    # 50,304 columns of logits are slow to emulate.
    [ "$DEVICE" = cuda ] || shape="--layers 1 --heads 1 --channels 32 -b 1 -t 16 -x 2 -l 3e-4"
    part parity-cpu 20 bash -c "run 200000 cpu train_gpt2 $shape" || return
    while read -r type allowed flags; do
        part "parity-$type" 20 bash -c "run 200000 $type train_gpt2cu --device $DEVICE --dtype $type $flags $shape && compare $type $allowed" ||
            failed=1
    done <<<$'f32 1e-4 -f 0\nbf16 1e-2\nfp16 5e-3'
    return $failed
}

time_steps() {
    [[ "$DEVICE $*" != emulated*cublaslt* ]] || { echo "the emulated device has no cuBLASLt"; return $ABSENT; }
    run "$@"
}

# The main measurement: GPT-2 124M, 64 x 1024 tokens, eight micro-steps. First with the default
# flags, which choose kernels by timing; then without graphs, where two of the ten steps are recorded
# operation by operation; with GELU fused, with our matmuls, and with cuBLASLt's, which fuse none.
# The limits of the parts plus GRACE are the step's limit.
train() {
    local tokens=6000000 shape="-e d12 -b 64 -t 1024 -d 524288 -r 0" failed=0 name seconds steps flags
    [ "$DEVICE" = cuda ] || { tokens=200000; shape="--layers 1 --heads 1 --channels 64 -b 1 -t 32"; }
    while read -r name seconds steps flags; do
        [ "$DEVICE" = cuda ] || { steps=2; flags=${flags/-lg 5/} flags=${flags/3:4/2}; }
        part "train-$name" "$seconds" bash -c "time_steps $tokens d12-$name train_gpt2cu --device $DEVICE $shape -x $steps $flags" ||
            failed=1
    done <<<$'default 44 20 -lg 5\nno-graphs 24 10 --cuda-graphs 0 --profile 3:4\nge2 24 10 -ge 2\nown 24 10 -ge 2 --matmul own\ncublaslt 24 10 -ge 0 --matmul cublaslt'
    return $failed
}

# Two recorded steps of GPT-2 124M under Nsight Systems: kernels by our ranges, and by name.
run_under_nsys() {
    command -v nsys >/dev/null || { echo "nsys not found"; return $ABSENT; }
    local tokens=6000000 shape="-e d12 -b 64 -t 1024 -d 524288 -r 0 -x 4 --profile 3:4"
    [ "$DEVICE" = cuda ] || { tokens=200000; shape="--layers 1 --heads 1 --channels 64 -b 1 -t 32 -x 2 --profile 2"; }
    local UNDER="nsys profile -t cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop -f true -o $OUT/steps"
    # shellcheck disable=SC2086
    run $tokens nsys train_gpt2cu --device "$DEVICE" $shape && nsys stats --report nvtx_gpu_proj_sum,cuda_gpu_kern_sum "$OUT/steps.nsys-rep"
}
nsys() { part nsys 55 bash -c run_under_nsys; }

has_torch() {
    "$PYTHON" -c 'import torch, numpy' 2>/dev/null || { echo "$PYTHON has no PyTorch; set PYTHON to one that does"; return $ABSENT; }
}

# PyTorch's attention, layernorm and cross-entropy by themselves.
time_peers() {
    has_torch || return
    local sizes="${SIZES:--e d12 -b 64 -t 1024} --reps 10"
    [ "$DEVICE" = cuda ] || sizes="-e tiny -b 2 -t 64 --reps 3 --device cpu"
    # shellcheck disable=SC2086
    "$PYTHON" dev/bench_attention.py $sizes --out "$OUT/peers.json"
}
peers() { part peers 35 bash -c time_peers; }

# Full steps of ours and of PyTorch, alternating: the variant that is usually its fastest, one
# round.
time_torch() {
    has_torch || return
    local tokens=6000000 ours="$BIN/train_gpt2cu -r 0 --shuffle llmc" flags="-e d12 -b 64 -t 1024 -d 524288 --rounds 1 --steps 5"
    flags+=" --torch ${TORCH:-bf16-master:compile:cudnn}"
    if [ "$DEVICE" != cuda ]; then
        tokens=200000 ours="$BIN/train_gpt2 --shuffle llmc"
        flags="--device cpu --torch f32:eager -b 1 -t 32 --rounds 1 --steps 2 --layers 1 --heads 1 --channels 32"
    fi
    corpus $tokens || return
    # shellcheck disable=SC2086
    "$PYTHON" dev/bench.py --ours "$ours" $flags --data "$OUT/data/$tokens/stories_train_000001.bin" --record "$OUT/record"
}
torch() { part torch 110 bash -c time_torch; }

# A few short tests with wide coverage; racecheck is the slowest and only checks shared memory.
sanitizer() {
    local carried=$BIN/compute-sanitizer failed=0 tool tests
    if [ "$DEVICE" != cuda ]; then
        # It has its own checker, which kernel tests enable.
        part sanitizer-emulated 15 env WARPSMITH_TEST_DEVICE=emulated "$BIN/kernels" --test-threads 1 gelu::
        return
    fi
    [ ! -d "$carried" ] || PATH=$(realpath "$carried"):$PATH
    while read -r tool tests; do
        # shellcheck disable=SC2086
        part "sanitizer-$tool" 15 bash -c 'command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer on this machine"; exit $ABSENT; }
            WARPSMITH_TEST_DEVICE=cuda exec compute-sanitizer --error-exitcode 1 --tool "$@"' \
            bash "$tool" "$BIN/kernels" --test-threads 1 ${KERNELS:-$tests} || failed=1
    done <<<$'memcheck hopper_tiles heads_of_64 losses_and_gradients\nsynccheck hopper_tiles heads_of_64\nracecheck heads_of_64'
    return $failed
}

# --- main

for step in $STEPS; do
    [[ " $ALL $EXTRA " == *" $step "* ]] || { echo "gpu_report: $step: expected one of: $ALL $EXTRA" >&2; exit 2; }
    [[ $(limit "$step") =~ ^[0-9]+$ ]] || { echo "gpu_report: LIMIT_$step=$(limit "$step"): expected seconds" >&2; exit 2; }
done
for program in probes kernels nccl bench train_gpt2 train_gpt2cu warpsmith; do
    [ -x "$BIN/$program" ] || { echo "gpu_report: expected $BIN/$program; make gpu-report-programs builds it" >&2; exit 2; }
done
mkdir -p "$OUT"
# Programs look there for the cuBLASLt and NCCL of PyTorch's packages.
[ -n "${VIRTUAL_ENV:-}" ] || VIRTUAL_ENV=$("$PYTHON" -c 'import sys; print(sys.prefix)' 2>/dev/null || true)
export VIRTUAL_ENV PYTHONUNBUFFERED=1
# Our programs log which kernel computes each matmul; the page shows it.
export WARPSMITH_LOG=${WARPSMITH_LOG:-info}
export OUT DEVICE BIN PYTHON ABSENT
export -f describe_machine train_with_nccl corpus run time_steps run_under_nsys compare has_torch time_peers time_torch

sum=0 text=
for step in $STEPS; do
    sum=$((sum + $(limit "$step"))) text+="${text:+, }$step $(limit "$step")"
done
echo "limits in seconds: $text; $sum in total"
failed=0
for step in $STEPS; do
    page=0 started=$SECONDS deadline=$((SECONDS + $(limit "$step")))
    # Remove leftovers of an earlier run of the step.
    rm -f "$OUT/$step".{log,result,step} "$OUT/$step"-*.{log,result}
    if "$step"; then result=ok; else result=FAILED failed=1; fi
    grep -qsv '| absent |' "$OUT/$step".result "$OUT/$step"-*.result || result=absent
    printf '%s | %s | %s\n' "$step" "$result" $((SECONDS - started)) >"$OUT/$step.step"
    # The page is updated too, so that an interrupted call loses no more than its current step.
    dev/gpu_report_page.sh "$OUT" >"$OUT/page.log" 2>&1 || page=1
    save
done
cat "$OUT/page.log"
exit $((failed | page))
