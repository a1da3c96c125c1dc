# What the recipes share; each of them sources this file. It fetches and tokenizes the text if that
# is not done yet, and trains. Run a recipe again after an interruption: it goes on where it was.
#
#   PROCESSES=8       number of processes, one per GPU (default: the number of GPUs, or 1)
#   OUT=dir           directory of the run (default: out/NAME)
#   TRAINER=program   default: train_gpt2cu if there is a GPU, else train_gpt2
#   LAUNCH=command    what starts the processes (default: warpsmith launch, if there are several)
#   BIN=dir           where the programs are (default: the root of the repository)
#   SMOKE=1           seconds instead of days: built-in stories and a tiny shape, all other flags
#                     the same
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.."
SMOKE=${SMOKE:-0}
BIN=${BIN:-.}
name=$(basename "$0" .sh)
given=("$@") # flags of the user, which win

gpus=0
if [ "$SMOKE" != 1 ] && command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi -L | grep -c '^GPU' || true)
fi
if [ "$gpus" -gt 0 ]; then
    TRAINER=${TRAINER:-train_gpt2cu}
else
    TRAINER=${TRAINER:-train_gpt2}
fi
PROCESSES=${PROCESSES:-$((gpus > 1 ? gpus : 1))}

for program in "$TRAINER" warpsmith; do
    if [ ! -x "$BIN/$program" ]; then
        echo "$name: no program $BIN/$program; build it with: make $program" >&2
        exit 2
    fi
done

if [ "$SMOKE" = 1 ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    OUT=${OUT:-$scratch/run}
fi
OUT=${OUT:-out/$name}

# text SOURCE DIR NAME [INPUT…]: shards DIR/NAME_train_*.bin and DIR/NAME_val_*.bin of what
# `warpsmith get SOURCE` fetches into DIR/source: of these files, or of all.
text() {
    local source=$1 dir=$2 prefix=$3
    shift 3
    if [ "$SMOKE" = 1 ] || [ -e "$dir/complete" ]; then
        return
    fi
    "$BIN/warpsmith" get "$source" -o "$dir/source"
    # What an interrupted run has left is not complete, so it is replaced.
    "$BIN/warpsmith" data "${@:-$dir/source}" -o "$dir" --name "$prefix" --force
    touch "$dir/complete"
}

# questions: HellaSwag's, for -h 1.
hellaswag=dev/data/hellaswag/hellaswag_val.jsonl
questions() {
    if [ "$SMOKE" != 1 ] && [ ! -e "$hellaswag" ]; then
        "$BIN/warpsmith" get hellaswag -o "$(dirname "$hellaswag")"
    fi
}

# stories: built-in stories in $scratch/data, for SMOKE=1.
stories() {
    if [ ! -e "$scratch/data" ]; then
        "$BIN/warpsmith" stories -o "$scratch/data" --tokens 40000
    fi
}

# train FLAGS…: the run.
train() {
    local run=("$BIN/$TRAINER" -o "$OUT" -y 1)
    if [ "$SMOKE" = 1 ]; then
        stories
        # 512 tokens a step leave two micro-steps to each of two processes. The learning rate, its
        # schedule, the optimizer and the samplers stay as they are.
        run+=(-i "$scratch/data/stories_train_*.bin" -j "$scratch/data/stories_val_*.bin"
            --layers 2 --heads 2 --channels 16 -b 2 -t 64 -d 512 -x 4 -v 2 -m 1 -n 2 -s 4 -g 4)
        hellaswag=tests/fixtures/hellaswag_small.jsonl
    fi
    start "${run[@]}" --hellaswag-data "$hellaswag" "$@"
}

# base MODEL: the model to fine-tune, in $base: that of the hub or at this path. With SMOKE=1 a tiny
# one, which sees four steps of stories.
base() {
    base=$1
    if [ "$SMOKE" = 1 ]; then
        base=$scratch/base
        stories
        "$BIN/train_gpt2" -i "$scratch/data/stories_train_*.bin" -j "$scratch/data/stories_val_*.bin" \
            --layers 2 --heads 2 --channels 16 -b 2 -t 64 -x 4 -v 0 -o "$base" >/dev/null
    fi
}

# finetune TRAIN VAL FLAGS…: the run from $base on shards that match these patterns, for three epochs
# unless the user gives another length. With SMOKE=1 the shapes and the number of steps are small; all
# other flags stay.
finetune() {
    local run=("$BIN/$TRAINER" -e "$base" -i "$1" -j "$2" -o "$OUT" -y 1 "${@:3}")
    if [ "$SMOKE" = 1 ]; then
        run+=(-b 2 -t 64 -d 512 -x 4 -v 2 -m 1 -n 2)
    elif [[ " ${given[*]} " != *" -x "* && " ${given[*]} " != *" --epochs "* ]]; then
        run+=(--epochs 3)
    fi
    start "${run[@]}" "${given[@]}"
}

# before_and_after PROMPT FLAGS…: how the base and the fine-tuned model continue a prompt.
before_and_after() {
    if [ "$SMOKE" = 1 ]; then
        set -- "$@" --max-tokens 20
    fi
    "$BIN/warpsmith" sample --compare "$base" "$OUT" --prompt "$@"
}

# start COMMAND…: as one process, several, or as $LAUNCH says.
start() {
    local run=("$@")
    if [ -n "${LAUNCH:-}" ]; then
        # shellcheck disable=SC2206 # a command and its arguments
        run=($LAUNCH "${run[@]}")
    elif [ "$PROCESSES" -gt 1 ]; then
        # Each process keeps its part of the optimizer's state.
        run=("$BIN/warpsmith" launch -n "$PROCESSES" --restarts 3 -- "${run[@]}" -z 1)
    fi
    "${run[@]}"
}
