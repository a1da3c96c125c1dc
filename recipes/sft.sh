#!/usr/bin/env bash
# GPT-2 124M, taught to answer: supervised fine-tuning on prompts and responses, or conversations.
#
#   JSONL=answers.jsonl recipes/sft.sh          # {"prompt": "…", "response": "…"} or {"messages": …}
#   TEMPLATE=template.json                      # the text around them: docs/fine-tuning.md
#
#   8,192 tokens a step = 2 sequences x 1,024 tokens x 4 micro-steps on one GPU. Only the tokens of
#   answers count, and whole examples are packed into each sequence.
#   3 epochs, linear decay from 5e-5 to 0, AdamW, clipping at 1.0, bf16 on a GPU
#
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data=${DATA:-dev/data/sft}
if [ "$SMOKE" = 1 ]; then
    data=$scratch/sft
    JSONL=recipes/questions.jsonl
elif [ -z "${JSONL:-}" ]; then
    echo "$name: expected the examples to train on: JSONL=answers.jsonl $0" >&2
    exit 2
fi
if [ ! -e "$data/complete" ]; then
    "$BIN/warpsmith" sft "$JSONL" ${TEMPLATE:+--template "$TEMPLATE"} -o "$data" --force
    touch "$data/complete"
fi

base gpt2
finetune "$data/sft_train_*.bin" "$data/sft_val_*.bin" -b 2 -t 1024 -d 8192 \
    -k linear -l 5e-5 -q 0 --grad-clip 1.0 -v 100 -n 500 -nk 2
before_and_after "${PROMPT:-What color is a pumpkin?}"$'\n' --temperature 0.7
