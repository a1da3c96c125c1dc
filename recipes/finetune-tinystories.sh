#!/usr/bin/env bash
# GPT-2 124M, fine-tuned on TinyStories (Eldan and Li 2023), and how it tells of a pumpkin before and
# after.
#
#   4,096 tokens a step = 2 sequences x 512 tokens x 4 micro-steps on one GPU; with several processes
#   each has its share of the micro-steps
#   TOKENS=20,000,000 of the stories, 3 epochs: 14,600 steps. All of TinyStoriesV2-GPT4 (TOKENS=all)
#   has 24 times as many
#   linear decay from 5e-5 to 0, AdamW, clipping at 1.0, bf16 on a GPU
#   6 x 124 million parameters x 60 million tokens = 4.5e16 FLOPs: 12 minutes at 40 % of the 165
#   TFLOP/s of an RTX 4090
#
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

data=dev/data/finetune-tinystories
source=$data/source
tokens=${TOKENS:-20000000}
if [ "$tokens" = all ]; then
    text tinystories "$data" tinystories \
        "$source/TinyStoriesV2-GPT4-train.txt" --val "$source/TinyStoriesV2-GPT4-valid.txt"
else
    # The first shard is the part that is read.
    text tinystories "$data" tinystories "$source/TinyStoriesV2-GPT4-train.txt" \
        --val "$source/TinyStoriesV2-GPT4-valid.txt" --shard-size "$tokens"
fi
train=$data/tinystories_train_000001.bin
val="$data/tinystories_val_*.bin"
if [ "$tokens" = all ]; then
    train="$data/tinystories_train_*.bin"
fi
if [ "$SMOKE" = 1 ]; then
    stories
    train="$scratch/data/stories_train_*.bin"
    val="$scratch/data/stories_val_*.bin"
fi

base gpt2
finetune "$train" "$val" -b 2 -t 512 -d 4096 -k linear -l 5e-5 -q 0 --grad-clip 1.0 \
    -v 500 -m 50 -n 2000 -nk 2
before_and_after "Once upon a time, there was a pumpkin." --temperature 0.8 --top-k 50
