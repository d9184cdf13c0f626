#!/usr/bin/env bash
# Runs on one GPU: the first, or the one that CUDA_VISIBLE_DEVICES names.
#
#     bash launch/gpu.sh --config experiments/X.py[:arg] --workdir runs/X [--config.field=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
platform=gpu source launch/env.sh
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
bash launch/install.sh
exec .venv/bin/python -m zsjax.launch "$@"
