#!/usr/bin/env bash
# GPT-3 760M (Brown et al. 2020, table 2.1) on 300 billion tokens of FineWeb-Edu.
#
#   572,205 steps x 524,288 tokens = 300 billion tokens: three epochs of the sample of 100 billion
#   524,288 tokens = 16 sequences x 2,048 tokens x 16 micro-steps on one GPU
#   warm-up over 715 steps = 375 million tokens; a cosine from 2.5e-4 to a tenth of it over
#   495,911 steps = 260 billion tokens, and that tenth to the end
#   6 x 760 million parameters x 300 billion tokens = 1.4e21 FLOPs
#   The paper also raises the batch over the first 4 to 12 billion tokens. So do
#   -b 2 --batch-ramp 32768:4B on eight GPUs, or -b 16 on one; the script itself does not, as it
#   needs small micro-batches.
#
# Predicted on eight H100 with -z 1: 532 ms a step, 85 hours.
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

text fineweb-edu:100BT dev/data/edu_fineweb100B edu_fineweb
questions
train --preset gpt3-760m "$@"
