#!/usr/bin/env bash
# One run over all hosts of a Cloud TPU slice, one process on each:
#
#   launch/clusters/tpu_vm.sh NAME ZONE FOLDER --config=configs/custom_unet.py --config.data.root=DIR --workdir=DIR
#
# NAME and ZONE are the slice's; FOLDER is where the repository lies on every host, with its environment in .venv
# (pip install -e '.[tpu]'); what follows goes to dagm_jax.main. DIR lies on a file system that all hosts share, such as
# Filestore.
set -euo pipefail

if (($# < 4)); then
    echo "usage: $0 NAME ZONE FOLDER --config=FILE [argument of dagm_jax.main ...]" >&2
    exit 2
fi
name=$1 zone=$2 folder=$3
shift 3

# ssh hands one line to the shell of the other side.
command=$(printf '%q ' .venv/bin/python -m dagm_jax.main --distributed "$@")
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
    --command="cd $(printf '%q' "$folder") && exec $command"
