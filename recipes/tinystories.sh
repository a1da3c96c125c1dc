#!/usr/bin/env bash
# A small model of TinyStories from scratch (Eldan and Li 2023).
#
#   8 layers, 8 heads, 512 channels: 51 million parameters, half of them in the embedding
#   7,200 steps x 65,536 tokens = 472 million tokens: about one epoch of TinyStoriesV2-GPT4
#   65,536 tokens = 64 sequences x 512 tokens x 2 micro-steps on one GPU
#   6 x 51 million parameters x 472 million tokens = 1.4e17 FLOPs: 36 minutes at 40 % of the 165
#   TFLOP/s of an RTX 4090
#
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

source=dev/data/tinystories/source
text tinystories dev/data/tinystories tinystories \
    "$source/TinyStoriesV2-GPT4-train.txt" --val "$source/TinyStoriesV2-GPT4-valid.txt"
train --preset tinystories "$@"
