#!/usr/bin/env bash
# One run over the GPUs of several nodes, one process for each GPU:
#
#   sbatch --nodes=2 launch/clusters/slurm.sh --config=configs/custom_unet.py --config.data.root=DIR --workdir=DIR
#
# What follows the script's name goes to dagm_jax.main. Submit from the repository's folder with the environment active;
# DIR lies on a file system that all nodes share. Before its time is up the run saves and the job is queued again.
#
#SBATCH --job-name=dagm_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=dagm_jax-%j.log
set -euo pipefail

most_restarts=20

# What each task runs: the command, whose mistakes, status 1 or 2, become 201 or 202. srun's status is the highest of all
# tasks', which else hides them behind what the others say of it: 75, 130, 134 or 137. Slurm signals a task's first
# process alone, which hands SIGTERM on; interrupted by it, wait is to be called again.
# shellcheck disable=SC2016  # to be expanded by the task
task='
    trap '\''kill -TERM "$!"; again=1'\'' TERM INT
    "$@" &
    again=1
    while ((again)); do again=0; wait "$!"; status=$?; done
    exit "$((status == 1 || status == 2 ? status + 200 : status))"
'

# jax gives each process the GPU of its number on the node, so every process must see all of them: no binding. --wait:
# when one process has ended the others have a minute to end by themselves. Slurm 22.05 to 23.02 hand on no number of
# CPUs by themselves.
status=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpu-bind=none --wait=60 \
    bash -c "$task" task python -m dagm_jax.main --distributed "$@" || status=$?
if ((status == 201 || status == 202)); then
    status=$((status - 200))
fi

case "$status" in
    # Finished, failed, or a mistake that another try does not mend.
    0 | 1 | 2) exit "$status" ;;
esac
if ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
    echo "status $status: queued again, the run goes on from what was saved last"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
