#!/usr/bin/env bash
# Runs on all GPUs of this node, such as 8 x A100 or H100: one process drives them all, config.mesh says how.
#
#     bash launch/gpu_node.sh --config experiments/zerosearch_qwen25.py:policy=3b --workdir runs/X
#
# Ask first whether it fits: python -m zsjax.launch plan --config ... --target a100-80gb:8
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
platform=gpu source launch/env.sh
bash launch/install.sh
exec .venv/bin/python -m zsjax.launch "$@"
