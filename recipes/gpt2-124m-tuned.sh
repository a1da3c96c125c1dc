#!/usr/bin/env bash
# GPT-2 124M on five billion tokens of FineWeb-Edu: AdamW at three times the usual learning rate.
#
#   9,536 steps x 524,288 tokens = 5.0 billion tokens: half of what gpt2-124m-fineweb-edu.sh reads
#   524,288 tokens = 64 sequences x 1,024 tokens x 8 micro-steps on one GPU, or x 8 GPUs
#   warm-up over 250 steps, 1.8e-3 to step 5,721, then a straight line to 0 over the last two fifths
#   6 x 124 million parameters x 5.0 billion tokens = 3.7e18 FLOPs
#   -x 19073 reads the whole epoch; the cooldown is two fifths of any length.
#
# Predicted on one H100: 798 ms a step, 2.1 hours; on eight with -z 1: 100 ms, 0.3 hours.
# This run has not been made: docs/training.md says where its numbers come from, and what they did on
# small nets.
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

text fineweb-edu:10BT dev/data/edu_fineweb10B edu_fineweb
questions
train --preset gpt2-124m-tuned "$@"
