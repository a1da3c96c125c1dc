#!/usr/bin/env bash
# GPT-2 large for a day on two consumer GPUs of 24 GB: no bias on queries, keys and values, a
# constant learning rate of 5e-5, gradients clipped at 1.
#
#   a step = 2 sequences x 1,024 tokens x 2 GPUs = 4,096 tokens
#   Predicted on two RTX 4090 over PCIe with -z 0: 171 ms a step, so 505,000 steps and
#   2.1 billion tokens in 24 hours, 2.7 tokens per parameter
#
# The run stops after 24 hours with exit status 75 and a checkpoint; run it again for another day.
# Training logs of this run used no schedule and no warm-up. Both help: -k cosine -u 1000 -q 0.1
# with a number of steps (-x), and accumulated gradients (-d 524288).
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

text fineweb-edu:10BT dev/data/edu_fineweb10B edu_fineweb
train --preset gpt2-large "$@"
