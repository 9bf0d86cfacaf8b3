#!/usr/bin/env bash
# One run over the GPUs of several nodes, one process for each GPU:
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/custom_unet.py --config.data.root=DIR --workdir=DIR
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

# jax gives each process the GPU of its number on the node, so every process must see all of them: no binding. --wait:
# when one process has ended the others have a minute to end by themselves.
status=0
srun --gpu-bind=none --wait=60 python -m dagm_jax.main --distributed "$@" || status=$?

case "$status" in
    # Finished, failed, or a mistake that another try does not mend.
    0 | 1 | 2) exit "$status" ;;
esac
if ((${SLURM_RESTART_COUNT:-0} < most_restarts)); then
    echo "status $status: queued again, the run goes on from what was saved last"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
