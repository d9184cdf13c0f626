#!/usr/bin/env bash
# Runs on every host of a TPU slice, from a machine with gcloud: copies this checkout to all workers and starts them.
#
#     TPU=my-v5e-16 ZONE=us-west4-a bash launch/tpu_pod.sh --config experiments/X.py --workdir /mnt/shared/runs/X
#
# The run's folder must be on a file system that all hosts see (Filestore, or a bucket mounted with gcsfuse).
# Stopped or preempted, the same command goes on from the last checkpoint.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
folder="$(mktemp -d)"
packed="$folder/zsjax.tar.gz"
trap 'rm -rf "$folder"' EXIT
tar --exclude=.git --exclude=.venv --exclude=.jax_cache --exclude=runs -czf "$packed" .
gcloud compute tpus tpu-vm scp "$packed" "$TPU:zsjax.tar.gz" --zone="$ZONE" --worker=all
flags="$(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
    mkdir -p zsjax && tar -xzf zsjax.tar.gz -C zsjax && bash zsjax/launch/tpu_vm.sh $flags --distributed"
