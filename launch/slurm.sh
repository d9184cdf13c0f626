#!/usr/bin/env bash
#SBATCH --job-name=zsjax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --output=zsjax-%j.log
# Runs on several nodes of GPUs under SLURM, one process a node. Submit it from the checkout, on a file system that all
# nodes see (the run's folder, too); .venv must be there. A login node without a GPU must name the extra:
#
#     ZSJAX_EXTRA=cuda12 bash launch/install.sh
#     sbatch --nodes=4 launch/slurm.sh --config experiments/X.py --workdir /shared/runs/X
#
# Killed or requeued, the same command goes on from the last checkpoint.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"
platform=gpu source launch/env.sh
# JAX takes one GPU a process under SLURM unless it is told that the process has all of the node's.
gpus="${SLURM_GPUS_ON_NODE:-8}"
export JAX_LOCAL_DEVICE_IDS="$(seq -s, 0 $((gpus - 1)))"
exec srun --kill-on-bad-exit=1 .venv/bin/python -m zsjax.launch "$@" --distributed
