#!/usr/bin/env bash
# GPT-2 124M on ten billion tokens of FineWeb-Edu, as build-nanogpt trains it.
#
#   19,073 steps x 524,288 tokens = 10.0 billion tokens: one epoch of the sample of 10 billion
#   524,288 tokens = 64 sequences x 1,024 tokens x 8 micro-steps on one GPU, or x 8 GPUs
#   warm-up over 715 steps = 375 million tokens, as GPT-3's; then a cosine from 6e-4 to 6e-5
#   6 x 124 million parameters x 10 billion tokens = 7.4e18 FLOPs
#
# Predicted on one H100: 759 ms a step, 4.0 hours; on eight with -z 1: 95 ms, 0.5 hours.
# A validation loss of 3.29 is that of OpenAI's GPT-2 124M on this text; a HellaSwag accuracy of
# 0.2955 is OpenAI's.
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

text fineweb-edu:10BT dev/data/edu_fineweb10B edu_fineweb
questions
train --preset gpt2-124m "$@"
