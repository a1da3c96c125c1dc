#!/usr/bin/env bash
# GPT-2 124M on ten billion tokens of FineWeb, with the flags of llm.c's run_gpt2_124M.sh.
#
#   18,865 steps x 524,288 tokens = 9.9 billion tokens: one epoch of the sample of 10 billion,
#   without its validation shard
#   524,288 tokens = 64 sequences x 1,024 tokens x 8 micro-steps on one GPU, or x 8 GPUs
#   warm-up over 700 steps, then a cosine from 6e-4 to 0; nothing is recomputed (-r 0)
#   With --shuffle llmc, one process reads llm.c's text token for token if the shards are llm.c's.
#
# Predicted on one H100: 759 ms a step, 4.0 hours; on eight with -z 1: 95 ms, 0.5 hours.
# Flags given to this script go to the trainer, and win. SMOKE=1 takes seconds: see common.sh.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

text fineweb:10BT dev/data/fineweb10B fineweb
questions
train --preset llmc-124m "$@"
