#!/usr/bin/env bash
# GPT-2 124M, fine-tuned on text of your own, whole documents in each sequence.
#
#   TEXT=corpus/ recipes/finetune-text.sh       # files or folders of text, JSON lines or parquet
#
#   8,192 tokens a step = 2 sequences x 1,024 tokens x 4 micro-steps on one GPU
#   3 epochs, constant 1e-4, AdamW, clipping at 1.0; bf16 on a GPU (--dtype fp16 for
#   fp16 with loss scaling)
#
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data=${DATA:-dev/data/finetune-text}
if [ "$SMOKE" = 1 ]; then
    data=$scratch/text
    TEXT=ARCHITECTURE.md
elif [ -z "${TEXT:-}" ]; then
    echo "$name: expected the text to train on: TEXT=corpus/ $0" >&2
    exit 2
fi
if [ ! -e "$data/complete" ]; then
    "$BIN/warpsmith" data "$TEXT" -o "$data" --name text --force
    touch "$data/complete"
fi

base gpt2
finetune "$data/text_train_*.bin" "$data/text_val_*.bin" -b 2 -t 1024 -d 8192 \
    --packed-documents 1 -k constant -l 1e-4 --grad-clip 1.0 -v 100 -m 20 -n 1000 -nk 2
before_and_after "${PROMPT:-The}" --temperature 0.8 --top-k 50
