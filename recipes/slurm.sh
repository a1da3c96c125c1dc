#!/usr/bin/env bash
# A recipe on several machines, under SLURM: sbatch [-N machines] recipes/slurm.sh RECIPE [FLAGS…]
# for example  sbatch -N 4 recipes/slurm.sh gpt3-1.3b -z 1
#
#   GPUs = machines x 8, one process each; the total batch stays that of the recipe, so its tokens
#   must divide by B x T x GPUs: 1,048,576 = 8 sequences x 2,048 tokens x 32 GPUs x 2 micro-steps
#
# A job that ends because of its time queues itself again, and resumes. SLURM's signal three minutes
# before the limit is the second line of defense; it also covers preemption.
# Fetch and tokenize the text before, on a machine that has a network: the first job does it
# otherwise, while its other machines wait.
# SMOKE=1 takes seconds, two processes and no SLURM.
#SBATCH --job-name=warpsmith
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail

if [ $# -eq 0 ]; then
    echo "slurm: expected a recipe, such as gpt3-1.3b, and flags for the trainer" >&2
    exit 2
fi
# SLURM runs a copy of this file, from the directory of sbatch.
recipes=${SLURM_SUBMIT_DIR:+$SLURM_SUBMIT_DIR/recipes}
recipes=${recipes:-$(dirname "$0")}
recipe=$recipes/$1.sh
shift

if [ "${SMOKE:-0}" = 1 ]; then
    export LAUNCH="${BIN:-.}/warpsmith launch -n 2 --"
else
    export LAUNCH="srun --kill-on-bad-exit=1"
fi
# Processes of one job recognize each other by it.
WARPSMITH_TOKEN=$(head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n')
export WARPSMITH_TOKEN

status=0
"$recipe" --max-hours 23.8 "$@" || status=$?
if [ "$status" -eq 75 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
